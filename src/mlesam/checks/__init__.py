"""What `mlesam doctor` and `mlesam train --dry-run` look for: every fault of the data, the weights and the installation."""
