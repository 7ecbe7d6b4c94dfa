"""Speed and memory as ratios, each measured in turns against what it is compared with: ``mlesam bench``."""
