"""What exporter and runtime share: errors, JSON and safetensors readers, the manifest, command-line plumbing."""
