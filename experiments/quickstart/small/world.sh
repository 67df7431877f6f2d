# shellcheck shell=bash disable=SC2034  # read by quickstart.sh
# A world that is learnt in minutes: fewer countries and objects, three facts of each country.
atlas_options="--num-objects 50 --num-countries 100 --num-drawings 60 --generated-rows 300"
# Questions of several steps: about these the workers are asked, and only rationales of these are selected.
several_steps=flag-capital,flag-currency,flag-tld,fact-flag
# What is trained, and measured.
asked=name-picture,picture-name-flag,picture-name-object,fact-capital,fact-currency,fact-tld,fact-country,$several_steps
asked=$asked,same-flag,same-colours
