#!/usr/bin/env bash
# Makes a site of the documents, with the sources that they link: bash tools/site.sh [FOLDER], default build/site.
source "$(dirname "$0")/common.sh"
install_packages pandoc
python3 tools/site.py "${1:-build/site}"
