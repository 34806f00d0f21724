"""Prompts that tell tokenizers apart."""

PROMPTS = [
    # Plain words
    "a photo of an astronaut riding a horse on mars",
    "Portrait of a Red Fox, 35mm, f/1.8 (highly detailed:1.2), [sharp focus], masterpiece!!!",
    "cat",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "UPPER lower MiXeD",
    # Nothing
    "",
    " ",
    " \t\n  \r\n ",
    # White space
    "  leading and trailing  ",
    "tabs\tand\nnewlines\r\nand   many    spaces",
    "no\u00a0break, em\u2003space, ideographic\u3000space, line\u2028separator, next\u0085line",
    # Punctuation
    "Hello, world! How are you? -- fine...",
    "semi;colon:slash/back\\slash|pipe~tilde`tick^caret",
    "(parentheses) [brackets] {braces} <angles>",
    "under_score __init__ snake_case_name kebab-case-name",
    "\"double\" 'single' \u201ccurly\u201d \u2018quotes\u2019 \u00abguillemets\u00bb",
    "100% #hashtag @mention $5.00 a+b=c & more*",
    "!!!??!!! ... ,,,",
    # Contractions
    "don't can't it's I'm you're we've they'll he'd DON'T IT'S",
    "rock'n'roll 'tis o'clock 'squoted' dogs' 'S 'LL",
    "it\u2019s don\u2019t",
    # Digits
    "1234567890",
    "3.14159 1,000,000 2024-01-31 16:9 4k 8K 1girl",
    "00000000000000000000000000000000000000000000",
    "\u0661\u0662\u0663 \u00b2\u00b3 \u00bd \u2167 \u2460",
    # Accents, composed and decomposed
    "caf\u00e9 na\u00efve \u00fcber se\u00f1or fa\u00e7ade",
    "cafe\u0301 nai\u0308ve u\u0308ber sen\u0303or fac\u0327ade",
    "\u01d5 u\u0308\u0304 \u1ec7 e\u0323\u0302 e\u0302\u0323",
    "\u212b \u2126 \u212a \ufb01 \u1e9b\u0323",
    "x\u0301\u0302\u0303 zalgo h\u0310e\u0311l\u0312l\u0313o",
    # Case that is more than one character, or needs its neighbours
    "\u0130stanbul \u0131\u015f\u0131k I\u0307",
    "Stra\u00dfe \u1e9e GRO\u1e9e",
    "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u03c3\u03c2 \u03a3",
    "\u01c4 \u01c5 \u01c6 \u0149",
    # Other scripts
    "\u4e00\u53ea\u72d0\u72f8\u5728\u96ea\u4e2d",
    "\u96ea\u306e\u4e2d\u306e\u30ad\u30c4\u30cd \uff76\uff9e",
    "\ub208 \uc18d\uc758 \uc5ec\uc6b0 \u1112\u1161\u11ab",
    "\u0420\u044b\u0436\u0430\u044f \u043b\u0438\u0441\u0430 \u0432 \u0441\u043d\u0435\u0433\u0443, \u0419 \u0418\u0306",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\uff26\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48 \uff11\uff12\uff13\uff01",
    "mixed\u6f22\u5b57and\u043b\u0430\u0442\u0438\u043d123abc",
    # Emoji
    "\U0001f600 \U0001f98a fox\U0001f98afox \u2764\ufe0f",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea 1\ufe0f\u20e3",
    # What cannot be seen
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffbom",
    "control\u0000nul\u0001soh\u0007bell\u001besc\u007fdel\u0080c1",
    "vertical\u000btab form\u000cfeed file\u001cseparator unit\u001fseparator",
    "soft\u00adhyphen right\u200fto\u202eleft",
    "\ufffd replacement \ue000 private \U000f0000 \U0010ffff",
    # Markup
    "salt &amp; pepper &lt;b&gt; &quot;x&quot; &#39; &nbsp;",
    "<b>bold</b> <br/> &",
    # The tokenizer's own words
    "before <|endoftext|> after",
    "<|startoftext|> again <|startoftext|>",
    "<start_of_text> <end_of_text> <|END|>",
    "a<|endoftext|>b <|EndOfText|> <| endoftext |>",
    "the</w> word</w>end",
    # Length: 75 tokens fit beside the start and the end
    " ".join(["cat"] * 74),
    " ".join(["cat"] * 75),
    " ".join(["cat"] * 76),
    " ".join(["cat"] * 77),
    "a very long prompt that goes on and on, " * 12,
    "\U0001f98a" * 40,
    "abcdefghijklmnopqrstuvwxyz" * 8,
]
