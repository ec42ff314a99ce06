"""Wordings that the mini checkpoint is never trained on: accuracy is measured with them."""

HELDOUT: dict[str, tuple[str, ...]] = {
    "colour": (
        "Can you tell me the colour of the {thing}{ref}?", "The {thing}{ref}, what colour is it?",
        "What color would you say the {thing} is{ref}?",
    ),
    "shape": (
        "Which one is {colour}{ref}?", "Can you name the {colour} shape{ref}?",
        "Tell me the shape that is {colour}{ref}.",
    ),
    "where": (
        "Can you tell me where the {thing} is{ref}?", "Where can you see the {thing}{ref}?",
        "Whereabouts is the {thing}{ref}?",
    ),
    "count": (
        "How many shapes can you see{ref}?", "What number of shapes do you see{ref}?",
        "How many objects can you count{ref}?",
    ),
    "count colour": ("How many {colour} shapes can you see{ref}?", "How many {colour} ones do you count{ref}?"),
    "describe": (
        "What can you see in {media}?", "Name the shapes in {media}.", "Show me what is in {media}.",
        "What does {media} contain?", "What shapes can you see{ref}?",
    ),
    "count shape": ("How many {shape}s can you see{ref}?", "How many {shape}s can you count{ref}?"),
    "count colours": ("How many colours can you see{ref}?", "How many colors can you count{ref}?"),
    "count kinds": ("How many kinds of shapes can you see{ref}?", "How many sorts of shapes are there{ref}?"),
    "count pictures": ("How many pictures can you see?", "How many images have I sent?"),
    "fewer": ("Which one has fewer shapes?", "Which picture has the fewest shapes?"),
    "moves": ("Can you see the {shape} move{ref}?", "Does the {shape} ever move{ref}?"),
    "mover colour": ("What colour does the moving shape have{ref}?", "Which colour is the shape that moves{ref}?"),
    "length": ("How much time does {media} take?", "For how many seconds does {media} run?"),
    "is colour": ("Can you tell me if the {thing}{ref} is {colour}?", "Do you see the {thing} in {colour}{ref}?"),
    "is at": ("Is the {thing} located at the {place}{ref}?", "Can you see the {thing} at the {place}{ref}?"),
    "at": ("What can you see at the {place}{ref}?", "What is located at the {place}{ref}?"),
    "which are": ("Which of these are {colour}{ref}?", "Can you name the {colour} shapes{ref}?"),
    "all shapes": ("What sorts of shapes are there{ref}?", "Which kinds of shapes can you see{ref}?"),
    "all colours": ("What colours can you see{ref}?", "Which colours are used{ref}?"),
    "exists": ("Can you find a {name}{ref}?", "Do you find a {name} in {media}?", "Could there be a {name}{ref}?"),
    "which": ("In which of the pictures do you see a {name}?", "Which of these images contains a {name}?"),
    "more": ("Which one has more shapes?", "Which picture has the most shapes?"),
    "direction": ("In which direction is the {shape} moving{ref}?", "Which direction is the {shape} heading{ref}?"),
    "mover": ("Which one moves{ref}?", "What shape is moving{ref}?"),
    "when": ("When is the {shape} first shown{ref}?", "At which moment does the {shape} appear{ref}?"),
    "clock": ("What time is it in the last frame{ref}?", "What is the time at the end{ref}?"),
    "frame time": ("What time is it in the {frame} frame{ref}?", "The {frame} frame{ref}: what is its time?"),
    "happens": ("What takes place in {media}?", "What can you see in {media}?", "Say what happens in {media}."),
    "json object": (
        "Write a JSON object with the shapes in {media}.", "Which shapes are in {media}? Use a JSON object.",
    ),
    "json": ("Reply with JSON: which shapes are in {media}?", "Please list what is in {media} as JSON."),
    "zoom": ("Could you zoom in on the {thing}{ref}?", "Zoom closer to the {thing}{ref}."),
    "sides": ("Do you know how many sides a {shape} has?", "How many sides would a {shape} have?"),
    "what is": ("Can you explain what a {shape} is?", "What is meant by a {shape}?"),
}  # fmt: skip
UNKNOWN_HELDOUT = (
    "Which country is {name} in?", "Can I {verb} my {noun} here?", "When was {name} born?", "Compute {n} minus {n}.",
    "What kind of {noun} is that?", "Should I buy a {adjective} {noun}?", "Please fix the {noun}.",
    "{adjective} {noun} {noun} {name}", "Whose {noun} is this?", "Recommend a {noun}.",
    "Write a limerick about {noun}.", "List three {adjective} {noun}s.", "Convert {n}{n} miles to kilometres.",
    "What does {word} mean?", "Is {word} a {noun}?", "{word} {word}", "Give me an example of a {adjective} {noun}.",
    "Can you recommend a {noun} in {name}?", "Why do people {verb}?", "What would {name} say about the {noun}?",
    "Reply with the word {noun}.", "Correct this sentence: {noun} are {adjective}.", "Plan a trip to {name}.",
    "I need help with my {noun}.", "Define {noun}.", "Rewrite the {noun} so that it is {adjective}.",
)  # fmt: skip
SYSTEMS_HELDOUT = (
    "You are a polite assistant for {noun} shops.",
    "Answer like a {adjective} {noun}.",
    "You see pictures and clips.",
    "Give correct answers, and give them fast.",
    "You are {name}'s assistant, and you like {noun}.",
    "No jokes, please.",
    "The user is a {adjective} {noun} from {name}.",
    "You are an AI that was made to look at images.",
)
SCRIPTS_HELDOUT = (
    "你叫什么名字？", "请写一首诗。", "これは何ですか？", "何時ですか。", "Сколько тебе лет?", "Где находится дом?",
    "كم الساعة الآن؟", "أين المدرسة؟", "आपका नाम क्या है?", "नमस्ते दोस्त", "이름이 뭐예요?", "오늘 날씨가 좋아요.",
    "Où est la gare ?", "Wie heißt du?", "¿Cuántos años tienes?", "Hvor er skolen?", "Où habites-tu ?",
)  # fmt: skip
