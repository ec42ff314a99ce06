"""The pictures that explain how the parts fit together."""

from tools.docs.svg import Drawing


def overview() -> str:
    """Draw the way from a checkpoint to an answer."""
    drawing = Drawing(
        860,
        330,
        "From a checkpoint to an answer",
        "ernie-export reads a checkpoint's config.json, safetensors and processor files, lowers four graphs for a target "
        "and streams the weights into a bundle of vision.onnx, resampler.onnx, decoder.onnx, decode.onnx, "
        "weights.safetensors and manifest.json. The runtime preprocesses messages, encodes images, prefills, decodes and "
        "samples text from the bundle.",
    )
    drawing.box((20, 30), (190, 110), "checkpoint\nconfig.json\n*.safetensors\ntokenizer, template, processors")
    drawing.box(
        (270, 30),
        (220, 110),
        "ernie-export\nfour graphs, lowered for a target\nweights streamed, quantized\nno PyTorch",
        "strong",
    )
    drawing.box(
        (550, 20),
        (290, 130),
        "bundle\nvision · resampler · decoder · decode\nweights.safetensors, shared by all four\nprocessor files\nmanifest.json: sizes, hashes, contract",
        "green",
    )
    drawing.arrow([(210, 85), (266, 85)])
    drawing.arrow([(490, 85), (546, 85)])
    names = [
        ("messages", "box", "text, images, videos"),
        ("preprocess", "strong", "template, pixels"),
        ("vision", "strong", "a call for each size"),
        ("decoder", "strong", "prefill in chunks"),
        ("decode", "strong", "a token for each"),
        ("sampling", "strong", "NumPy"),
    ]
    for index, (name, kind, note) in enumerate(names):
        drawing.box((20 + 140 * index, 215), (122, 60), f"{name}\n{note}", kind)
        if index:
            drawing.arrow([(2 + 140 * index, 245), (16 + 140 * index, 245)])
    drawing.arrow([(781, 275), (781, 300), (641, 300), (641, 279)])
    drawing.text((652, 316), "next token", "small quiet")
    drawing.arrow([(695, 150), (695, 180), (430, 180), (430, 211)], dashed=True)
    drawing.text((20, 204), "runtime: ernie-run, ernie-chat, ernie-serve, Python", "bold")
    return str(drawing)


def packages() -> str:
    """Draw the packages and who may import whom."""
    drawing = Drawing(
        760,
        300,
        "Packages and the direction of imports",
        "exporter imports graphs and common; graphs imports common; runtime imports common only. exporter.verify and "
        "exporter.calibration also import runtime. Nothing imports exporter but the package's own entry points.",
    )
    drawing.box(
        (40, 30), (230, 70), "exporter\ncheckpoint to bundle, for each target\nplan, verify, calibration", "strong"
    )
    drawing.box(
        (490, 30), (230, 70), "runtime\nbundle to answers: engines, scheduler\nserving; no torch, no onnx", "green"
    )
    drawing.box(
        (40, 160), (230, 70), "graphs\nwhat the model is: configuration,\ncheckpoint, graphs, operators", "warm"
    )
    drawing.box((250, 240), (260, 46), "common\nerrors, manifest, JSON, safetensors header")
    drawing.arrow([(155, 100), (155, 156)])
    drawing.arrow([(155, 230), (155, 263), (246, 263)])
    drawing.arrow([(605, 100), (605, 263), (514, 263)])
    drawing.arrow([(270, 65), (486, 65)], dashed=True)
    drawing.text((378, 56), "verify and calibration alone", "small quiet", "middle")
    drawing.arrow([(245, 100), (330, 236)])
    return str(drawing)


def request() -> str:
    """Draw the way of a request through the server's threads."""
    drawing = Drawing(
        860,
        300,
        "A request's way through threads and queue",
        "The event loop checks key, Host header and body size and parses the request. Admission reserves a place in the "
        "queue or answers 429. Media threads decode and resize images and videos. The scheduler thread prefills in "
        "chunks between decode steps of the running sequences and hands tokens back; the event loop streams them. A "
        "client that leaves frees its sequence before the next token.",
    )
    drawing.text((20, 30), "event loop (one thread)", "bold")
    drawing.box((20, 44), (150, 64), "guard\nkey, Host, head and body\nlimits in time and bytes")
    drawing.box((200, 44), (150, 64), "schema\nunknown fields are\nrefused by name")
    drawing.box((380, 44), (150, 64), "admission\na place in the queue,\nor 429")
    drawing.box((690, 44), (150, 64), "stream\ntext pieces as\nserver-sent events", "green")
    drawing.text((20, 150), "media threads", "bold")
    drawing.box((380, 164), (150, 64), "preprocess\ndecode, resize, template\nwithin MediaLimits", "warm")
    drawing.text((600, 150), "scheduler thread", "bold")
    drawing.box(
        (600, 164),
        (240, 100),
        "batch over one KV cache\nprefill a chunk of a new prompt\ndecode a token for each sequence\nsample, detokenize, stop",
        "strong",
    )
    drawing.arrow([(170, 76), (196, 76)])
    drawing.arrow([(350, 76), (376, 76)])
    drawing.arrow([(455, 108), (455, 160)])
    drawing.arrow([(530, 196), (596, 196)])
    drawing.arrow([(765, 164), (765, 112)])
    drawing.arrow([(690, 76), (580, 76), (580, 210), (596, 210)], dashed=True)
    drawing.text((588, 128), "client left", "small quiet", "start")
    return str(drawing)


def bundle() -> str:
    """Draw what lies in a bundle."""
    drawing = Drawing(
        760,
        320,
        "A bundle on disk",
        "Four graph files point into one weights.safetensors. manifest.json lists every other file with size and SHA-256 "
        "and is written last. decode.onnx has no vision experts. Engines of TensorRT take the place of the graphs; "
        "kernels, timing cache and report lie beside them.",
    )
    for index, (name, note) in enumerate(
        (
            ("vision.onnx", "frames of one size"),
            ("resampler.onnx", "2 × 2 patches, frame pairs"),
            ("decoder.onnx", "prefill: all experts"),
            ("decode.onnx", "no vision experts"),
        )
    ):
        drawing.box((20 + 184 * index, 24), (168, 56), f"{name}\n{note}", "strong")
        drawing.arrow([(104 + 184 * index, 80), (104 + 184 * index, 112)])
    drawing.box(
        (20, 116),
        (720, 54),
        "weights.safetensors\nevery tensor once, by offset; an engine binds them as inputs",
        "warm",
    )
    drawing.box((20, 194), (350, 54), "processor files\ntokenizer, chat template, image and video settings, font")
    drawing.box((390, 194), (350, 54), "TensorRT only\n*.engine, kernels-smXX.json, timing.cache, engines.json")
    drawing.box(
        (20, 262),
        (720, 44),
        "manifest.json\nwritten last: target, precision, model info, every file's size and SHA-256",
        "green",
    )
    return str(drawing)


def kv_cache() -> str:
    """Draw slots of the KV cache over time."""
    drawing = Drawing(
        760,
        270,
        "KV-cache slots over time",
        "Slot 0 decodes sequence A, which ends; its entries stay for prefix reuse until sequence D takes the slot. Slot "
        "1 decodes B throughout. Slot 2 prefills C in chunks between the decode steps of A and B, then decodes. A second "
        "question about the same image starts from the kept prefix and prefills only what is new.",
    )
    left = 90
    unit = 50
    spans = {
        0: [
            (0, 5, "A decodes", "strong"),
            (5, 3, "kept for reuse", "box"),
            (8, 1, "D", "warm"),
            (9, 3, "D decodes", "strong"),
        ],
        1: [(0, 12, "B decodes, a token a step", "strong")],
        2: [(1, 1, "C", "warm"), (3, 1, "C", "warm"), (5, 1, "C", "warm"), (6, 6, "C decodes", "strong")],
    }
    for slot, entries in spans.items():
        y = 30 + 62 * slot
        drawing.text((left - 12, y + 27), f"slot {slot}", "bold", "end")
        for start, length, label, kind in entries:
            drawing.box((left + unit * start + 2, y), (unit * length - 4, 44), label, kind)
    drawing.arrow([(left, 222), (left + unit * 12 + 20, 222)])
    drawing.text(
        (left, 242),
        "time: prefill chunks (orange) run between decode steps (blue), so running answers keep their pace",
        "small quiet",
    )
    drawing.text(
        (left, 258),
        "D asks about A's image: its kept prefix is reused, and only the new tokens are prefilled",
        "small quiet",
    )
    return str(drawing)


def moe_dispatch() -> str:
    """Draw what each target makes of the operator MoEDispatch."""
    drawing = Drawing(
        860,
        330,
        "What each target makes of MoEDispatch",
        "A graph calls ernie::MoEDispatch once for each layer. Target onnx uses the MoE operators of ONNX Runtime, onnx-portable "
        "uses standard operators, trt-rtx uses standard operators that its parser accepts, and trt uses plugins with Triton "
        "kernels. The NumPy reference is what every body is tested against.",
    )
    drawing.box(
        (300, 20),
        (260, 64),
        "ernie::MoEDispatch\nrouting, text experts, vision experts\none call for each layer",
        "warm",
    )
    drawing.box((610, 26), (220, 52), "reference.py (NumPy)\nevery body is tested against it")
    drawing.arrow([(606, 52), (564, 52)], dashed=True)
    bodies = [
        ("onnx", "com.microsoft MoE, QMoE", "fused kernels of", "ONNX Runtime"),
        ("onnx-portable", "TopK, Gather, MatMul", "standard operators,", "opset 24"),
        ("trt-rtx", "dense or gathered form", "standard operators, by", "size, no plugin"),
        ("trt", "plugins with Triton kernels", "route, gate and up,", "down, combine"),
    ]
    for index, (name, form, first, second) in enumerate(bodies):
        x = 20 + 210 * index
        drawing.arrow([(430, 84), (430, 110), (x + 95, 110), (x + 95, 136)])
        drawing.box((x, 140), (190, 90), f"{name}\n{form}\n{first}\n{second}", "strong")
    proofs = [
        "parity on a CPU",
        "parity on a CPU",
        "graphs: parity; engines: built",
        "graphs: parity; kernels: interpreted",
    ]
    for index, proof in enumerate(proofs):
        drawing.text((115 + 210 * index, 256), proof, "small quiet", "middle")
    drawing.text(
        (430, 300),
        "The body is an ONNX function: the graph stays the same, the target chooses what the call means.",
        "",
        "middle",
    )
    return str(drawing)
