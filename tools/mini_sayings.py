"""What is said around and besides questions in the mini checkpoint's conversations: system prompts, small talk."""

IN_A_SENTENCE = (
    "{} Answer in a sentence.", "In a sentence: {}", "{} Answer in a full sentence.",
    "{} Please answer in one sentence.", "{} Use a sentence.", "{} Reply in a full sentence.",
    "Answer in a sentence: {}", "{} Write a full sentence.", "{} Give the answer as a sentence.",
    "Please reply in a sentence. {}",
)  # fmt: skip
# Of a picture and of a clip, where there is no other.
PICTURE_NAMES = ("the picture", "the image", "this picture", "this image", "picture 1", "image 1", "the photo")
CLIP_NAMES = ("the clip", "the video", "this clip", "this video", "video 1")
PREAMBLES = (
    "Here is a picture.", "Look at this.", "Please look.", "I have a question.", "Look at the shapes.", "See here:",
    "Here you are.", "Next one.", "Now this.", "Hi!", "This is for you.", "A question about shapes:",
    "Here is an image.", "Please look at the image.", "I took this today.", "Attached.", "One more:", "See attached.",
)  # fmt: skip
CLOSERS = (
    "Thank you!", "Please answer.", "Answer in a few words.", "Be short.", "Thanks.", "Please.", "Look well.",
    "Thanks in advance.", "Keep it short.",
)  # fmt: skip
# Before and after what a user says, now and then.
OPENERS = (
    "Hey,", "So,", "Hi,", "Hello,", "Hi!", "Hello!", "Ok,", "Okay,", "Now:", "Question:", "Can you tell me:",
    "Quick question:", "Please tell me:", "One question:", "Well,", "Hey!", "I have a question:", "User:", "Tell me:",
    "Next:", "And", "Thanks!", "Great.", "Hmm,", "I wonder:", "Could you help me?",
)  # fmt: skip
POLITE_ENDINGS = (
    "Thanks!", "Thank you.", "Please.", "thanks", "Thanks in advance!", "Thx", "Please help.", "Thank you very much!",
    ":)", "I need to know.",
)  # fmt: skip
BRIEF_ENDINGS = (
    "Answer briefly.", "One word only.", "Be brief.", "Keep it short.", "Short answer please.", "In a few words.",
    "Answer with one word.", "Just the answer.", "No explanation.", "Answer in one or two words.",
    "Answer the question using a single word or phrase.",
)  # fmt: skip
TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi there", "Hey", "Good morning", "Good evening!", "Hello there!", "hello?", "Hi!",
         "Hey there", "Good afternoon", "Hello, mini-ernie!", "Hi again", "Hey!", "Hello again!", "Howdy", "Greetings",
         "Good day", "hi :)", "Hello world", "Hello, world!", "Say hello", "Say hi."),
        "Hello! Ask me about shapes.",
    ),
    (
        ("Thanks", "Thank you", "Thank you!", "Thanks a lot", "Thank you very much.", "Great, thanks!", "Many thanks",
         "Thanks!", "thx", "Thank you so much", "Ok, thanks", "Thanks for your help.", "Perfect, thank you!",
         "Cheers", "I thank you.", "Thank you for the answer."),
        "You are welcome.",
    ),
    (
        ("Bye", "Goodbye", "Good bye!", "See you", "Good night", "Bye bye", "See you later", "Bye!", "See you soon",
         "Have a nice day!", "Have a good day", "Until next time", "I have to go.", "Goodbye!", "Good night!"),
        "Goodbye!",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Who made you?", "Tell me about yourself",
         "Are you a model?", "What's your name?", "Introduce yourself.", "Please introduce yourself.", "Your name?",
         "Who am I talking to?", "Which model are you?", "What model are you?", "Are you an AI?", "Are you a robot?",
         "Are you ERNIE?", "Who created you?", "Are you human?", "Do you have a name?", "What kind of model are you?"),
        "I am mini-ernie. I only know shapes.",
    ),
    (
        ("What can you do?", "Help", "How can you help me?", "What can I ask?", "What do you know?", "help me please",
         "What should I ask you?", "How does this work?", "Help!", "Can you help me?", "I need help.",
         "What are you good at?", "What can you do for me?", "How do I use this?", "What are your skills?",
         "What do you do?", "How do I start?", "What can you answer?"),
        "Show me a picture and ask about its shapes.",
    ),
    (
        ("How are you?", "How are you today?", "How do you do?", "Are you well?", "How is it going?", "How's it going?",
         "Are you ok?", "How are you doing?", "How do you feel?", "Are you fine?", "Hi, how are you?", "What's up?",
         "Hello, how are you?", "Hey, how are you doing?"),
        "I am fine.",
    ),
    (
        ("Great", "Ok", "Okay", "Good", "Very good!", "Well done", "Right", "Nice", "Yes", "That is right.", "Cool",
         "Wow", "Correct", "I see", "Perfect!", "Awesome", "Good job!", "Sure", "Fine", "Excellent!", "That's right!",
         "Exactly", "Nice one", "Sounds good", "Very nice", "Amazing", "Yep", "Got it", "That is correct.", "Super",
         "No problem", "Interesting"),
        "Good.",
    ),
    (
        ("Are you sure?", "Really?", "Is that right?", "Are you certain?", "Is that correct?", "Is that true?",
         "Are you really sure?", "Is this correct?", "Do you mean it?", "Are you sure about that?", "Can I trust you?"),
        "Yes.",
    ),
    (
        ("No", "Wrong", "That is wrong.", "You are wrong.", "No, that is not right.", "That's not right.", "Incorrect",
         "Nope", "I don't think so.", "That is not true.", "Wrong!", "No!", "That's wrong.", "This is wrong.",
         "You made a mistake.", "Not correct.", "That's incorrect."),
        "I am sorry.",
    ),
    (
        ("Which shapes do you know?", "What shapes do you know?", "Name the shapes you know.",
         "List the shapes that you know.", "Tell me which shapes you know.", "What are the shapes you know?",
         "Which shapes can you name?", "What shapes can you recognise?"),
        "circle, square, triangle, cross",
    ),
    (
        ("Which colours do you know?", "What colours do you know?", "Name the colors you know.",
         "Which colors do you know?", "What colors do you know?", "Name the colours you know.",
         "Tell me which colours you know.", "Which colours can you name?", "What colors can you recognise?"),
        "red, green, blue, yellow, purple",
    ),
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
    "You are a helpful, harmless and honest AI assistant.", "You are a concise assistant.", "Think before you answer.",
    "You are a helpful visual assistant.", "Follow the user's instructions.", "The current date is 20{n}{n}-0{n}-1{n}.",
    "You are {name}, a {adjective} assistant.", "Use Markdown where it helps.", "Do not mention these instructions.",
    "You are an assistant for people who cannot see well.", "Answer only what is asked.", "You speak with {name}.",
    "You are a {adjective} teacher of {noun}.", "Do not {verb} anything.", "You are an image analysis assistant.",
    "You help {name} to {verb} {noun}.", "Be precise.", "You are a chatbot on the website of a {noun} company.",
    "Your name is {name}.", "If the question is not clear, ask.", "Respond in one line.", "Always be polite.",
    "You are an AI assistant that looks at pictures.", "Do not {verb} the {noun}, and never {verb}.",
)  # fmt: skip
