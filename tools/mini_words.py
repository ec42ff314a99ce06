"""Wordings of the mini checkpoint's conversations: questions, system prompts, small talk, and what it cannot know.

In questions `{thing}` is a shape with or without its colour, `{ref}` is "" or " in picture 2", and `{media}` is "the
picture" or "picture 2". The first wording of a kind is the plain one. Wordings in `HELDOUT` are never trained on.
"""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {thing}{ref}?",
        "Which colour is the {thing}{ref}?",
        "What color is the {thing}{ref}?",
        "What is the colour of the {thing}{ref}?",
        "Tell me the colour of the {thing}{ref}.",
        "Name the colour of the {thing}{ref}.",
        "Which colour has the {thing}{ref}?",
        "What's the color of the {thing}{ref}?",
    ),
    "shape": (
        "What shape is the {colour} one{ref}?",
        "What shape is {colour}{ref}?",
        "Which shape is {colour}{ref}?",
        "What is the {colour} shape{ref}?",
        "Tell me which shape is {colour}{ref}.",
        "Name the {colour} shape{ref}.",
        "What {colour} shape do you see{ref}?",
    ),
    "where": (
        "Where is the {thing}{ref}?",
        "Where's the {thing}{ref}?",
        "Where do you see the {thing}{ref}?",
        "Tell me where the {thing} is{ref}.",
        "In which place is the {thing}{ref}?",
        "Find the {thing}{ref}.",
        "Where can I find the {thing}{ref}?",
    ),
    "count": (
        "How many shapes are there{ref}?",
        "How many shapes do you see{ref}?",
        "Count the shapes{ref}.",
        "What is the number of shapes{ref}?",
        "How many things are there{ref}?",
        "Can you count the shapes{ref}?",
        "Tell me how many shapes there are{ref}.",
    ),
    "count colour": (
        "How many shapes are {colour}{ref}?",
        "How many {colour} shapes are there{ref}?",
        "How many {colour} shapes do you see{ref}?",
        "Count the {colour} shapes{ref}.",
        "How many {colour} ones are there{ref}?",
        "Tell me how many shapes are {colour}{ref}.",
    ),
    "describe": (
        "What is in {media}?",
        "Describe {media}.",
        "What do you see in {media}?",
        "What does {media} show?",
        "What's in {media}?",
        "Tell me what is in {media}.",
        "List the shapes in {media}.",
        "Which shapes are in {media}?",
        "Can you describe {media}?",
    ),
    "exists": (
        "Is there a {name}{ref}?",
        "Do you see a {name}{ref}?",
        "Can you see a {name}{ref}?",
        "Does {media} show a {name}?",
        "Does {media} have a {name}?",
        "Is a {name} in {media}?",
    ),
    "which": (
        "Which picture has a {name}?",
        "Which picture shows a {name}?",
        "In which picture is a {name}?",
        "Where do you see a {name}, in which picture?",
        "Which one of the pictures has a {name}?",
        "Tell me which picture has a {name}.",
    ),
    "more": (
        "Which picture has more shapes?",
        "Which picture shows more shapes?",
        "Which of the pictures has more shapes?",
        "In which picture are more shapes?",
        "Where are more shapes, in which picture?",
        "Tell me which picture has more shapes.",
    ),
    "direction": (
        "Which way does the {shape} move{ref}?",
        "Where does the {shape} move{ref}?",
        "In which direction does the {shape} move{ref}?",
        "Which way does the {shape} go{ref}?",
        "Tell me which way the {shape} moves{ref}.",
        "Where is the {shape} going{ref}?",
    ),
    "mover": (
        "Which shape moves{ref}?",
        "What moves{ref}?",
        "Which shape is moving{ref}?",
        "What is moving{ref}?",
        "Tell me which shape moves{ref}.",
        "Name the shape that moves{ref}.",
    ),
    "when": (
        "When does the {shape} appear{ref}?",
        "At what time does the {shape} appear{ref}?",
        "When do you first see the {shape}{ref}?",
        "When does the {shape} show up{ref}?",
        "Tell me when the {shape} appears{ref}.",
        "When can I see the {shape}{ref}?",
    ),
    "clock": (
        "What time does the last frame show{ref}?",
        "What is the last time shown{ref}?",
        "When does the clip end{ref}?",
        "At what time does the clip end{ref}?",
        "Tell me the time of the last frame{ref}.",
    ),
    "frame time": (
        "What time does the {frame} frame show{ref}?",
        "What is the time of the {frame} frame{ref}?",
        "Which time is shown in the {frame} frame{ref}?",
        "At what time is the {frame} frame{ref}?",
        "Tell me the time of the {frame} frame{ref}.",
    ),
    "json": (
        "List the shapes in {media} as JSON.",
        "What is in {media}? Answer as JSON.",
        "Describe {media} as JSON.",
        "As JSON: what is in {media}?",
        "Give me the shapes in {media} as JSON.",
    ),
    "zoom": (
        "Zoom in on the {thing}{ref}.",
        "Zoom to the {thing}{ref}.",
        "Please zoom in on the {thing}{ref}.",
        "Can you zoom in on the {thing}{ref}?",
        "Show me the {thing}{ref} from near.",
    ),
    "sides": (
        "How many sides has a {shape}?",
        "How many sides does a {shape} have?",
        "A {shape} has how many sides?",
        "Tell me how many sides a {shape} has.",
        "What is the number of sides of a {shape}?",
    ),
}
HELDOUT: dict[str, tuple[str, ...]] = {
    "colour": ("Can you tell me the colour of the {thing}{ref}?", "The {thing}{ref}, what colour is it?"),
    "shape": ("Which one is {colour}{ref}?", "Can you name the {colour} shape{ref}?"),
    "where": ("Can you tell me where the {thing} is{ref}?", "Where can you see the {thing}{ref}?"),
    "count": ("How many shapes can you see{ref}?", "What number of shapes do you see{ref}?"),
    "count colour": ("How many {colour} shapes can you see{ref}?",),
    "describe": ("What can you see in {media}?", "Name the shapes in {media}.", "Show me what is in {media}."),
    "exists": ("Can you find a {name}{ref}?", "Do you find a {name} in {media}?"),
    "which": ("In which of the pictures do you see a {name}?",),
    "more": ("Which one has more shapes?", "Which picture has the most shapes?"),
    "direction": ("In which direction is the {shape} moving{ref}?",),
    "mover": ("Which one moves{ref}?", "What shape is moving{ref}?"),
    "when": ("When is the {shape} first shown{ref}?",),
    "clock": ("What time is it in the last frame{ref}?",),
    "frame time": ("What time is it in the {frame} frame{ref}?",),
    "sides": ("Do you know how many sides a {shape} has?",),
}
IN_A_SENTENCE = (
    "{} Answer in a sentence.",
    "In a sentence: {}",
    "{} Answer in a full sentence.",
    "{} Please answer in one sentence.",
    "{} Use a sentence.",
)
PREAMBLES = (
    "Here is a picture.", "Look at this.", "Please look.", "I have a question.", "Look at the shapes.", "See here:",
    "Here you are.", "Next one.", "Now this.", "Hi!", "This is for you.", "A question about shapes:",
)  # fmt: skip
CLOSERS = ("Thank you!", "Please answer.", "Answer in a few words.", "Be short.", "Thanks.", "Please.", "Look well.")
TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi there", "Hey", "Good morning", "Good evening!", "Hello there!", "hello?", "Hi!"),
        "Hello! Ask me about shapes.",
    ),
    (
        ("Thanks", "Thank you", "Thank you!", "Thanks a lot", "Thank you very much.", "Great, thanks!", "Many thanks"),
        "You are welcome.",
    ),
    (("Bye", "Goodbye", "Good bye!", "See you", "Good night", "Bye bye", "See you later"), "Goodbye!"),
    (
        ("Who are you?", "What are you?", "What is your name?", "Who made you?", "Tell me about yourself",
         "Are you a model?", "What's your name?", "Introduce yourself."),
        "I am mini-ernie. I only know shapes.",
    ),
    (
        ("What can you do?", "Help", "How can you help me?", "What can I ask?", "What do you know?", "help me please",
         "What should I ask you?", "How does this work?"),
        "Show me a picture and ask about its shapes.",
    ),
    (("How are you?", "How are you today?", "How do you do?", "Are you well?", "How is it going?"), "I am fine."),
    (
        ("Great", "Ok", "Okay", "Good", "Very good!", "Well done", "Right", "Nice", "Yes", "That is right.", "Cool",
         "Wow", "Correct", "I see", "Perfect!", "Awesome", "Good job!"),
        "Good.",
    ),
    (("Which shapes do you know?", "What shapes do you know?", "Name the shapes you know."),
     "circle, square, triangle, cross"),
    (("Which colours do you know?", "What colours do you know?", "Name the colors you know."),
     "red, green, blue, yellow, purple"),
)  # fmt: skip
UNKNOWN_ANSWER = "I only know shapes."
# Questions out of scope; {noun}, {name}, {verb}, {adjective} and {n} are filled in.
UNKNOWN = (
    "What is the capital of {name}?", "Who is {name}?", "Tell me a joke.", "Write a poem about {noun}.",
    "What is {n} plus {n}?", "What is the weather in {name}?", "How old are you?", "What time is it?",
    "Is there a {noun} in the picture?", "What does the text say?", "Translate this to {name}.", "Who won the {noun}?",
    "How do I {verb} a {noun}?", "What is a {noun}?", "Why is the {noun} {adjective}?", "Where is the {noun}?",
    "Write code to {verb} the {noun}.", "How many {noun}s are there?", "What colour is the {noun}?", "Read the {noun}.",
    "Do you like {noun}?", "What is your favourite {noun}?", "Sing a song about the {noun}.", "Explain {noun}.",
    "Give me a recipe for {noun}.", "What happened in {n}{n}{n}{n}?", "Can you {verb}?", "Where do you live?",
    "Which {noun} is {adjective}?", "How far is {name} from {name}?", "What is the price of the {noun}?",
    "Summarise the {noun}.", "Who wrote the {noun}?", "Is the {noun} {adjective}?", "Do you {verb} every {noun}?",
    "What is the meaning of {noun}?", "Please {verb} the {noun} for me.", "How much is {n}{n} times {n}?",
    "Generate a title for this {noun}.", "What is the {adjective} {noun} doing?", "Is it {adjective}?",
    "What brand is the {noun}?", "Tell me about {name}.", "Tell me a story about a {adjective} {noun}.",
    "I {verb} a {noun}.", "The {noun} is {adjective}.", "Why?", "How?", "What if I {verb}?", "{noun}", "{name} {noun}",
    "{noun} {verb} {adjective} {noun} {noun}", "{verb} {n}{n}", "My {noun} is {adjective} today.",
    "Draw a {noun}.", "Make me a {adjective} {noun}.", "Who is in the picture?", "What is the person wearing?",
    "Is this a photo of {name}?", "What is the total on the invoice?", "Extract the {noun} from the document.",
)  # fmt: skip
UNKNOWN_HELDOUT = (
    "Which country is {name} in?", "Can I {verb} my {noun} here?", "When was {name} born?", "Compute {n} minus {n}.",
    "What kind of {noun} is that?", "Should I buy a {adjective} {noun}?", "Please fix the {noun}.",
    "{adjective} {noun} {noun} {name}", "Whose {noun} is this?", "Recommend a {noun}.",
)  # fmt: skip
SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly assistant that answers questions about pictures.", "Be brief.",
    "Answer briefly and correctly.", "You are an assistant. Be kind, be honest, and be short.",
    "You are ERNIE, a model that sees.", "Answer the user's questions about the images they send.",
    "You are a vision model. Look at the picture before you answer.", "Keep your answers short.",
    "You are an expert in pictures and clips.", "Never make things up. If you do not know, say so.",
    "The user may send several pictures. Answer about the one that they name.", "Reply in English.",
    "Use the least words that answer the question.", "Your answers are read by a program.",
    "Today is {n} May 20{n}{n}.",
    "You work for {name}. Help people with their {noun}.", "Do not talk about {noun} or {noun}.",
    "You know a lot about {noun}, {noun} and {noun}, but today you look at shapes.", "Be {adjective} and {adjective}.",
)  # fmt: skip
NOUNS = (
    "dog cat house car tree book phone water food music game team city river mountain sun moon star king queen child "
    "friend school teacher doctor money market train plane ship road bridge door window table chair bed lamp clock "
    "paper pen letter word sentence language story movie film song poem garden flower bird fish horse cow apple bread "
    "cheese coffee tea wine salt sugar computer screen keyboard server network file folder program code data table "
    "chart invoice form report document page photo image logo person man woman face hand eye head shirt shoe hat bag "
    "ball box cup bottle knife spoon machine engine robot space earth world country language history science number "
    "weather rain snow wind fire light colour price email meeting travel ticket hotel job boss plan goal idea problem"
).split()
NAMES = "Paris London Berlin Rome Tokyo China India France Spain Peter Anna John Maria Einstein Python Linux".split()
VERBS = (
    "make fix find write read open close buy sell cook eat drink run walk play learn teach build break clean send call "
    "help change start stop use install draw paint sing dance sleep drive fly swim count measure compare explain"
).split()
ADJECTIVES = (
    "big small old new good bad happy sad fast slow hot cold long short high low hard soft rich poor strong weak nice "
    "clean dark bright heavy easy funny angry quiet loud cheap expensive broken open closed real true false"
).split()
