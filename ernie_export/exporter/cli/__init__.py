"""The commands that read a checkpoint: ernie-export, ernie-plan, ernie-verify."""
