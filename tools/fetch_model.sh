#!/usr/bin/env bash
# Fetches the base model of the examples, SmolLM2-135M-Instruct (81 MB, once), and prints its path.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
fetch_model || die "the model could not be fetched: is there a network?"
echo "$MODEL"
