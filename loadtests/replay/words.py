"""Words that are one token each, with the space before them, in practically every vocabulary.

English, four letters each, so that a text of them is one look-up. Found in the vocabularies of
SmolLM2, GPT-4 and GPT-4o (cl100k, o200k), Qwen, DeepSeek, Claude (2), and Mistral (v1, v3, Tekken):
byte-level BPE and SentencePiece, 32,000 to 200,000 tokens.
"""

_WORDS = """
able acts adds aged ages aims also anti apps arch area arms army arts asks atom auto away axis
back bags ball band bank bark barn bars base bass bath beam bean bear beat beds been bell belt
bend bent best bike bill bird bite bits blog blue boat body bold bolt bond bone book boom boot
born both bowl bulk bush buzz cage cake call calm came camp caps card cars cart case cash cast
cats cave cell chat chef chin chip city clay clip club coal coat code coin cold come cone cook
cool cope copy cord core corn crop cups cure curl cute dark dash data date dawn days deal dear
deck deep deer demo desk dice diet dirt dish disk does done door dove down draw drew drop drum
dual duck each earn ears ease east easy echo edge edit eggs else ends even exit eyes face fact
fade fair fake fall fame farm fast fate feed feel fees feet fell felt file fill film find fine
fire firm fish five flag flat flex flow foam fold folk fond food fork form fort four free from
full fund gain game gaps gate gave gaze gear gets gift give glad glow goal gold golf good grab
gray grew grey grid grip grow hair half hall halt hand hang hard hash have head heap hear heat
held help here hero hide high hill hint hips hire hold hole home hood hook hope horn host hour
html huge icon idea idle inch info iron item jack jazz jobs join jump just keen keep kept keys
kick kind knee knew know lady laid lake lamp land lane last late lawn laws lead leaf lean leap
left legs lens lets life lift like line link lion lips list live load loan logo logs long look
loop lord lost lots luck made mail main make male many maps mark mart mass mate math meal mean
meet melt memo menu mere mild mile milk mind mine mini mint mode moon more most move much must
nail name near neat neck need nest next nice nick nine node noon nose note nuts odds once ones
only onto open opts oral outs oven over owns pace pack page paid pair pale palm park part pass
past path pays peak pear peas pens pets pick pier pile pine pink pipe pity plan play plot plug
plus poem pool port pose post pour pull pump pure push quad race rack rail rain ramp rank rare
rate read real rear rely rent rest rice rich ride ring rise road rock rode role roll roof room
root rope rose rows rule rush rust safe sage said sail sale salt same sand sang scan seal seas
seat seed seek seem seen sees self send sent sets ship shoe shop show side sign silk sing sink
site sits size skip slot slow snap snow soap sock soft soil sole solo some song sons soon sort
soul soup span spin spot spun star stay stem step stir stop such sure surf swap swim sync tags
tail take tale talk tall tank tape task taxi team tech tell tend tens tent term test text than
that them then they this thus tide tied tier ties tile tilt time tiny tips toes told tone tons
took tool tops toss tour tout town toys tray tree trim trip true tube tune turn twin type unit
upon used user vast verb very vest view vine visa void vote wage wait wake walk wall wand want
ware warm wash wave ways wear week well went were west what when whom wide wild will wind wine
wing wins wire wise wish with wolf wood wool word wore work worn yard year yoga zone zoom
"""

WORDS: tuple[str, ...] = tuple(_WORDS.split())
WORD_LETTERS = 4

assert all(len(word) == WORD_LETTERS for word in WORDS)
assert len(set(WORDS)) == len(WORDS)
