"""Word lists of the spoken training sentences, one lexicon per language, written for this use."""

# Letters of other scripts look like Latin ones to the linter.
# ruff: noqa: RUF001

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lexicon:
    """Phrases of one language that fit together in any combination.

    Attributes
    ----------
    subject, predicate, tail : tuple of str
        Who (third person singular), does what, where or when.
    thing : tuple of str
        What ``{x}`` of a question stands for.
    question, number : tuple of str
        Frames with ``{x}`` for a thing and ``{n}`` for a number.
    link, cry : tuple of str
        Conjunctions between statements; greetings and exclamations.
    characters_per_s : float
        Measured speaking speed at 175 words per minute, pauses included.
    is_verb_last : bool
        The tail comes before the predicate.
    """

    subject: tuple[str, ...]
    predicate: tuple[str, ...]
    tail: tuple[str, ...]
    thing: tuple[str, ...]
    question: tuple[str, ...]
    number: tuple[str, ...]
    link: tuple[str, ...]
    cry: tuple[str, ...]
    characters_per_s: float
    is_verb_last: bool = False


def _lexicon(characters_per_s: float, *rows: str, is_verb_last: bool = False) -> Lexicon:
    """Lexicon from its eight rows of phrases, separated by bars."""
    subject, predicate, tail, thing, question, number, link, cry = (
        tuple(phrase.strip() for phrase in row.split("|")) for row in rows
    )
    return Lexicon(
        subject,
        predicate,
        tail,
        thing,
        question,
        number,
        link,
        cry,
        characters_per_s,
        is_verb_last,
    )


LEXICONS: dict[str, Lexicon] = {
    "en": _lexicon(
        17.7,
        "my neighbour | the old painter | a small brown dog | her brother | nobody | the baker "
        "| this young woman | our teacher | a tired pilot | the boy with the drum | everybody here",
        "opens the blue window | buys bread and plums | plays the piano | waits for the last bus "
        "| writes a long letter | makes fresh apple pie | laughs about the weather "
        "| carries a heavy box | forgets the umbrella | paints the garden wall | reads the map",
        "in the morning | behind the house | near the river | before the storm | every summer "
        "| at the market | after supper | on top of the hill | by the sea | without a word",
        "the old bridge | my bicycle | the open door | your best friend | the big blue boat "
        "| the railway museum | a good umbrella | the pumpkin soup",
        "where is {x} | who remembers {x} | did you see {x} | how far is it to {x} "
        "| why do we need {x} | may I borrow {x}",
        "{n} people are waiting outside | the ticket costs {n} pounds | page {n} is missing "
        "| we walked {n} miles | there were {n} birds on the roof",
        "and | but | because | while | so",
        "good morning | well, well | oh my, how beautiful | thank you very much | of course not "
        "| please be quiet | what a pity | see you tomorrow",
    ),
    "de": _lexicon(
        17.2,
        "mein Nachbar | die alte Malerin | ein kleiner brauner Hund | ihr Bruder | niemand "
        "| der Bäcker | diese junge Frau | unser Lehrer | ein müder Pilot | das Kind mit dem Hut",
        "öffnet das blaue Fenster | kauft Brot und Pflaumen | spielt Klavier "
        "| wartet auf den letzten Bus | schreibt einen langen Brief | backt frischen Apfelkuchen "
        "| lacht über das Wetter | trägt eine schwere Kiste | vergisst den Hut | liest die Karte",
        "am Morgen | hinter dem Haus | nahe beim Fluss | vor dem Gewitter | jeden Sommer "
        "| auf dem Markt | nach dem Abendbrot | oben auf dem Berg | am Meer | ohne ein Wort",
        "die alte Brücke | mein Fahrrad | die offene Tür | das große blaue Boot "
        "| das Museum am Bahnhof | die Kürbissuppe | der beste Freund",
        "wo ist {x} | wem gehört {x} | wie teuer war {x} | was kann {x} | warum fehlt {x}",
        "draußen warten {n} Leute | die Karte kostet {n} Euro | Seite {n} fehlt "
        "| wir gingen {n} Meter | auf dem Dach saßen {n} Vögel",
        "und | aber | denn | doch",
        "guten Morgen | na so etwas | ach, wie schön | vielen Dank | natürlich nicht "
        "| bitte leise | wie schade | bis morgen",
    ),
    "fr": _lexicon(
        21.3,
        "mon voisin | la vieille dame | un petit chien brun | son frère | personne ici "
        "| le boulanger | cette jeune femme | notre professeur | un pilote fatigué | tout le monde",
        "ouvre la fenêtre bleue | achète du pain et des prunes | joue du piano "
        "| attend le dernier bus | écrit une longue lettre | prépare une tarte aux pommes "
        "| rit du mauvais temps | porte une lourde boîte | oublie le parapluie | lit la carte",
        "le matin | derrière la maison | près de la rivière | avant l'orage | chaque été "
        "| au marché | après le dîner | en haut de la colline | au bord de la mer | sans un mot",
        "le vieux pont | mon vélo | la porte ouverte | le grand bateau bleu | le musée de la gare "
        "| la soupe au potiron | le meilleur ami",
        "où est {x} | qui connaît {x} | avez-vous vu {x} | combien coûte {x} | pourquoi aimer {x}",
        "il y a {n} personnes dehors | le billet coûte {n} euros | la page {n} manque "
        "| nous avons marché {n} mètres | j'ai compté {n} oiseaux",
        "et | mais | parce que | pendant que",
        "bonjour | eh bien, voilà | oh, que c'est beau | merci beaucoup | bien sûr que non "
        "| un peu de silence | quel dommage | à demain",
    ),
    "es": _lexicon(
        15.7,
        "mi vecino | la vieja pintora | un pequeño perro pardo | su hermano | nadie aquí "
        "| el panadero | esta mujer joven | nuestro maestro | un piloto cansado | todo el mundo",
        "abre la ventana azul | compra pan y ciruelas | toca el piano | espera el último autobús "
        "| escribe una carta larga | prepara un pastel de manzana | se ríe del mal tiempo "
        "| lleva una caja pesada | olvida el paraguas | lee el mapa",
        "por la mañana | detrás de la casa | cerca del río | antes de la tormenta | cada verano "
        "| en el mercado | después de la cena | en la montaña | junto al mar | sin una palabra",
        "el viejo puente | mi bicicleta | la puerta abierta | el gran barco azul "
        "| el museo del tren | la sopa de calabaza | el mejor amigo",
        "dónde está {x} | quién conoce {x} | cuánto vale {x} | por qué nos gusta {x}",
        "hay {n} personas afuera | la entrada cuesta {n} pesos | falta la página {n} "
        "| caminamos {n} metros | vi {n} pájaros en el tejado",
        "y | pero | porque | mientras",
        "buenos días | vaya, vaya | ay, qué bonito | muchas gracias | claro que no "
        "| silencio, por favor | qué pena | hasta mañana",
    ),
    "it": _lexicon(
        16.5,
        "il mio vicino | la vecchia pittrice | un piccolo cane bruno | suo fratello | nessuno qui "
        "| il fornaio | questa giovane donna | il nostro maestro | un pilota stanco | ogni bambino",
        "apre la finestra blu | compra pane e prugne | suona il pianoforte "
        "| aspetta l'ultimo autobus | scrive una lunga lettera | prepara una torta di mele "
        "| ride del brutto tempo | porta una scatola pesante | dimentica l'ombrello "
        "| legge la mappa",
        "di mattina | dietro la casa | vicino al fiume | prima della tempesta | ogni estate "
        "| al mercato | dopo cena | in cima alla collina | in riva al mare | senza una parola",
        "il vecchio ponte | la mia bicicletta | la porta aperta | la grande barca azzurra "
        "| il museo del treno | la zuppa di zucca | il migliore amico",
        "dov'è {x} | chi conosce {x} | quanto costa {x} | perché ci piace {x}",
        "ci sono {n} persone fuori | il biglietto costa {n} euro | manca la pagina {n} "
        "| abbiamo camminato {n} metri | ho visto {n} uccelli",
        "e | ma | perché | mentre",
        "buongiorno | ma guarda | oh, che bello | grazie mille | certo che no "
        "| silenzio, per favore | che peccato | a domani",
    ),
    "pt": _lexicon(
        15.6,
        "meu vizinho | a velha pintora | um pequeno cão pardo | o irmão dela | ninguém aqui "
        "| o padeiro | esta jovem mulher | nosso professor | um piloto cansado | todo mundo",
        "abre a janela azul | compra pão e ameixas | toca piano | espera o último ônibus "
        "| escreve uma longa carta | prepara uma torta de maçã | ri do mau tempo "
        "| leva uma caixa pesada | esquece o chapéu | lê o mapa",
        "de manhã | atrás da casa | perto do rio | antes da tempestade | todo verão "
        "| no mercado | depois do jantar | no alto do morro | à beira do mar | sem uma palavra",
        "a velha ponte | minha bicicleta | a porta aberta | o grande barco azul "
        "| o museu do trem | a sopa de abóbora | o melhor amigo",
        "onde fica {x} | quem conhece {x} | quanto custa {x} | por que não vemos {x}",
        "há {n} pessoas lá fora | o bilhete custa {n} reais | falta a página {n} "
        "| andamos {n} metros | vi {n} pássaros no telhado",
        "e | mas | porque | enquanto",
        "bom dia | ora, ora | ah, que bonito | muito obrigado | claro que não "
        "| silêncio, por favor | que pena | até amanhã",
    ),
    "nl": _lexicon(
        16.8,
        "mijn buurman | de oude schilder | een kleine bruine hond | haar broer | niemand hier "
        "| de bakker | deze jonge vrouw | onze leraar | een moede piloot | het meisje met de hoed",
        "opent het blauwe raam | koopt brood en pruimen | speelt piano "
        "| wacht op de laatste bus | schrijft een lange brief | bakt verse appeltaart "
        "| lacht om het weer | draagt een zware doos | vergeet de paraplu | leest de kaart",
        "in de ochtend | achter het huis | dicht bij de rivier | voor de storm | elke zomer "
        "| op de markt | na het eten | boven op de heuvel | aan zee | zonder een woord",
        "de oude brug | mijn fiets | de open deur | de grote blauwe boot | het spoormuseum "
        "| de pompoensoep | de beste vriend",
        "waar is {x} | van wie is {x} | hoe duur was {x} | waarom mist {x}",
        "buiten wachten {n} mensen | het kaartje kost {n} euro | bladzijde {n} ontbreekt "
        "| wij liepen {n} meter | op het dak zaten {n} vogels",
        "en | maar | want | dus",
        "goedemorgen | nou zeg | o, wat mooi | dank je wel | natuurlijk niet | stil alsjeblieft "
        "| wat jammer | tot morgen",
    ),
    "sv": _lexicon(
        15.4,
        "min granne | den gamla målaren | en liten brun hund | hennes bror | ingen här | bagaren "
        "| den unga kvinnan | vår lärare | en trött pilot | flickan med hatten",
        "öppnar det blå fönstret | köper bröd och plommon | spelar piano "
        "| väntar på sista bussen | skriver ett långt brev | bakar en färsk äppelkaka "
        "| skrattar åt vädret | bär en tung låda | glömmer paraplyet | läser kartan",
        "på morgonen | bakom huset | nära floden | före stormen | varje sommar | på torget "
        "| efter middagen | uppe på berget | vid havet | utan ett ord",
        "den gamla bron | min cykel | den öppna dörren | den stora blå båten "
        "| museet vid stationen | pumpasoppan | den bästa vännen",
        "var är {x} | vem äger {x} | hur dyr var {x} | varför saknas {x}",
        "{n} personer väntar utanför | biljetten kostar {n} kronor | sidan {n} fattas "
        "| vi gick {n} meter | på taket satt {n} fåglar",
        "och | men | för | så",
        "god morgon | jaså minsann | åh, så vackert | tack så mycket | naturligtvis inte "
        "| var snäll och tyst | vad synd | vi ses i morgon",
    ),
    "pl": _lexicon(
        14.5,
        "mój sąsiad | stara malarka | mały brązowy pies | jej brat | piekarz | ta młoda kobieta "
        "| nasz nauczyciel | zmęczony pilot | chłopiec z bębnem | babcia",
        "otwiera niebieskie okno | kupuje chleb i śliwki | gra na pianinie "
        "| czeka na ostatni autobus | pisze długi list | piecze szarlotkę | śmieje się z pogody "
        "| niesie ciężką skrzynię | zapomina parasola | czyta mapę",
        "rano | za domem | blisko rzeki | przed burzą | każdego lata | na targu | po kolacji "
        "| na szczycie góry | nad morzem | bez słowa",
        "stary most | mój rower | ten duży niebieski statek | muzeum kolei | zupa dyniowa "
        "| najlepszy przyjaciel",
        "gdzie jest {x} | czyj jest {x} | ile kosztuje {x} | po co nam {x}",
        "czeka tam {n} osób | bilet kosztuje {n} złotych | brakuje strony {n} "
        "| widziałem {n} ptaków",
        "i | ale | bo | a",
        "dzień dobry | no proszę | och, jak pięknie | bardzo dziękuję | oczywiście, że nie "
        "| proszę o ciszę | jaka szkoda | do jutra",
    ),
    "cs": _lexicon(
        14.7,
        "můj soused | stará malířka | malý hnědý pes | její bratr | pekař | tato mladá žena "
        "| náš učitel | unavený pilot | chlapec s bubnem | babička",
        "otevírá modré okno | kupuje chléb a švestky | hraje na klavír "
        "| čeká na poslední autobus | píše dlouhý dopis | peče jablečný koláč | směje se počasí "
        "| nese těžkou bednu | zapomíná deštník | čte mapu",
        "ráno | za domem | blízko řeky | před bouří | každé léto | na trhu | po večeři "
        "| na vrcholu hory | u moře | beze slova",
        "starý most | můj klobouk | ten velký modrý člun | muzeum vlaků | dýňová polévka "
        "| nejlepší přítel",
        "kde je {x} | čí je {x} | kolik stojí {x} | k čemu je {x}",
        "venku čeká {n} lidí | lístek stojí {n} korun | chybí strana {n} | viděl jsem {n} ptáků",
        "a | ale | protože | takže",
        "dobré ráno | no tohle | ach, jaká krása | moc děkuji | samozřejmě ne | prosím o ticho "
        "| jaká škoda | tak zítra",
    ),
    "ru": _lexicon(
        17.1,
        "мой сосед | старая художница | маленькая бурая собака | её брат | пекарь "
        "| эта молодая женщина | наш учитель | усталый пилот | мальчик с барабаном | бабушка",
        "открывает синее окно | покупает хлеб и сливы | играет на пианино "
        "| ждёт последний автобус | пишет длинное письмо | печёт яблочный пирог "
        "| смеётся над погодой | несёт тяжёлый ящик | забывает зонт | читает карту",
        "утром | за домом | возле реки | перед бурей | каждое лето | на рынке | после ужина "
        "| на вершине горы | у моря | без единого слова",
        "старый мост | мой велосипед | этот большой синий корабль | музей поездов "
        "| тыквенный суп | лучший друг",
        "где же {x} | откуда здесь {x} | почему так дорог {x} | зачем нам {x}",
        "там ждут {n} человек | билет стоит {n} рублей | потеряна страница {n} | на крыше {n} птиц",
        "и | но | потому что | а",
        "доброе утро | вот это да | ах, как красиво | большое спасибо | конечно нет "
        "| пожалуйста, тише | как жаль | до завтра",
    ),
    "tr": _lexicon(
        13.7,
        "komşum | yaşlı ressam | küçük bir köpek | onun kardeşi | fırıncı | bu genç kadın "
        "| bizim öğretmen | yorgun pilot | davullu çocuk | büyükannem",
        "mavi pencereyi açıyor | ekmek ve erik alıyor | piyano çalıyor | son otobüsü bekliyor "
        "| uzun bir mektup yazıyor | elmalı pasta yapıyor | havaya gülüyor "
        "| ağır bir kutu taşıyor | şemsiyeyi unutuyor | haritayı okuyor",
        "sabahleyin | evin arkasında | nehrin yanında | fırtınadan önce | her yaz | pazarda "
        "| yemekten sonra | tepenin üstünde | deniz kıyısında | tek söz etmeden",
        "eski köprü | benim bisiklet | açık kapı | büyük mavi gemi | tren müzesi "
        "| kabak çorbası | en iyi arkadaşım",
        "{x} nerede | {x} kimin | {x} kaç para | {x} neden yok",
        "dışarıda {n} kişi bekliyor | bilet {n} lira | {n} metre yürüdük | çatıda {n} kuş var",
        "ve | ama | çünkü | bu arada",
        "günaydın | vay canına | ah, ne güzel | çok teşekkürler | tabii ki hayır "
        "| lütfen sessiz olun | ne yazık | yarın görüşürüz",
        is_verb_last=True,
    ),
    "fi": _lexicon(
        14.2,
        "naapurini | vanha maalari | pieni ruskea koira | hänen veljensä | leipuri "
        "| tämä nuori nainen | meidän opettaja | väsynyt lentäjä | poika ja rumpu | isoäiti",
        "avaa sinisen ikkunan | ostaa leipää ja luumuja | soittaa pianoa "
        "| odottaa viimeistä bussia | kirjoittaa pitkän kirjeen | leipoo omenapiirakan "
        "| nauraa säälle | kantaa painavaa laatikkoa | unohtaa sateenvarjon | lukee karttaa",
        "aamulla | talon takana | lähellä jokea | ennen myrskyä | joka kesä | torilla "
        "| illallisen jälkeen | mäen päällä | meren rannalla | sanomatta mitään",
        "vanha silta | minun pyöräni | avoin ovi | suuri sininen vene | junamuseo "
        "| kurpitsakeitto | paras ystävä",
        "missä on {x} | kenen on {x} | paljonko maksaa {x} | miksi puuttuu {x}",
        "ulkona odottaa {n} ihmistä | lippu maksaa {n} euroa | sivu {n} puuttuu "
        "| katolla on {n} lintua",
        "ja | mutta | koska | kun",
        "hyvää huomenta | no johan on | voi, miten kaunista | kiitos paljon | ei tietenkään "
        "| hiljaa nyt | mikä vahinko | nähdään huomenna",
    ),
    "id": _lexicon(
        14.2,
        "tetangga saya | pelukis tua | seekor anjing kecil | adik perempuannya | tukang roti "
        "| wanita muda ini | guru kami | seorang pilot | anak dengan gendang | nenek",
        "membuka jendela biru | membeli roti dan pisang | bermain piano "
        "| menunggu bus terakhir | menulis surat panjang | membuat kue apel "
        "| tertawa karena cuaca | membawa kotak berat | melupakan payung | membaca peta",
        "pada pagi hari | di belakang rumah | dekat sungai | sebelum badai | setiap musim panas "
        "| di pasar | setelah makan malam | di atas bukit | di tepi laut | tanpa bicara",
        "jembatan tua | sepeda saya | pintu besar | kapal biru besar | museum kereta "
        "| sup labu | teman baikmu",
        "di mana {x} | berapa harga {x} | siapa punya {x} | mengapa tidak ada {x}",
        "ada {n} orang di luar | harga tiket {n} rupiah | halaman {n} hilang "
        "| kami berjalan {n} meter",
        "dan | tetapi | karena | sambil",
        "selamat pagi | wah, hebat | aduh, indah sekali | terima kasih banyak | tentu tidak "
        "| tolong diam | sayang sekali | sampai besok",
    ),
}
"""Lexicon of each language by its two-letter code."""
