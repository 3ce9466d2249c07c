#!/usr/bin/env bash
# Makes a TPU VM ready: the share that all hosts see, and the code, which lies beside this file. Again does no harm.
#
#   on_host.sh gs://BUCKET FOLDER      or      on_host.sh HOST:/PATH FOLDER
set -euo pipefail
share=$1 folder=$2
cd "$(dirname "$0")/../../.."

# What one host writes the others must see at once: names and sizes are not cached.
if ! mountpoint -q "$folder"; then
  sudo mkdir -p "$folder"
  if [[ $share == gs://* ]]; then
    key=/usr/share/keyrings/cloud.google.asc
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee $key >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse
    sudo chown "$USER" "$folder"
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "${share#gs://}" "$folder"
  else
    sudo apt-get update -qq && sudo apt-get install -qq -y nfs-common
    sudo mount -o actimeo=0 "$share" "$folder"
    sudo chmod 777 "$folder"
  fi
fi

# uv brings a Python of its own: that of the TPU images may be too old.
curl -LsSf https://astral.sh/uv/install.sh | sh
~/.local/bin/uv venv --clear --python 3.12 venv
~/.local/bin/uv pip install --python venv/bin/python -e code 'jax[tpu]'
