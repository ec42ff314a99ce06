"""Plan before any work: sizes of a model, memory on a device, upper bounds of its speed."""
