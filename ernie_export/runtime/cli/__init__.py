"""The commands that run a bundle: ernie-run, ernie-chat, ernie-bench, ernie-serve."""
