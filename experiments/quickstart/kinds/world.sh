# shellcheck shell=bash disable=SC2034  # read by quickstart.sh
# The small world with all kinds of tasks: what docs/deciding.md tells of three seeds is measured in it.
atlas_options="--num-objects 60 --num-countries 100 --num-drawings 60 --generated-rows 300"
# Questions of several steps: about these the workers are asked, and only rationales of these are selected.
several_steps=flag-capital,flag-currency,flag-tld,fact-flag
# What is trained, and measured.
asked=name-picture,picture-name-flag,picture-name-object,fact-capital,fact-currency,fact-tld,fact-country,$several_steps
asked=$asked,same-tone,same-person,same-flag,same-colours,same-clock,same-sign,mixed-sum,mixed-time
