# shellcheck shell=bash disable=SC2034  # read by quickstart.sh
# The whole world: all countries whose flag can be told from others, with all that is known of them.
atlas_options="--num-objects 240"
# Questions of several steps: about these the workers are asked, and only rationales of these are selected.
several_steps=flag-capital,flag-region,flag-currency,flag-language,flag-tld,neighbour-capital,neighbour-currency,fact-flag
# What is trained, and measured: groups of tasks, all that there are.
asked=simple,multi-hop,perceptual,mixed
