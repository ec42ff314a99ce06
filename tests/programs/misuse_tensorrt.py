"""Use the builder of TensorRT's fake rightly once and wrongly in many ways; print what each raised."""

import json

import tensorrt as trt


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)


builder = trt.Builder(Log())
config = builder.create_builder_config()
cache = config.create_timing_cache(b"")
uses = {
    "as it should be": lambda: config.set_flag(trt.BuilderFlag.TF32),
    "a property that is not there": lambda: setattr(config, "hardware_compatibility", trt.ProfilingVerbosity.NONE),
    "a property of another type": lambda: setattr(config, "hardware_compatibility_level", "NONE"),
    "a method that is not there": lambda: config.set_workspace(1),
    "an argument of another type": lambda: config.set_flag("TF32"),
    "an argument too few": lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
    "an argument too many": lambda: config.clear_flag(trt.BuilderFlag.TF32, 1),
    "an argument by another name": lambda: config.set_timing_cache(cache, mismatch=False),
    "text for bytes": lambda: config.create_timing_cache("no bytes"),
}
found = {}
for name, use in uses.items():
    try:
        use()
    except (AttributeError, TypeError) as e:
        found[name] = type(e).__name__
print(json.dumps([list(uses), found]))
