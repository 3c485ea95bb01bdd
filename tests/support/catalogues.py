"""Catalogues of every kind, and 1,000 ways to damage them.

A number decides the damage: each of CHANGES in turn, with the random choices of a seed. Content goes in and out;
nothing here touches a file.
"""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable

from tests.support.mutations import of_bytes

PO = r"""# A translator.
msgid ""
msgstr ""
"Language: fr\n"
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=(n > 1);\n"

#. Of the menu.
#: main.cpp:3 menu.cpp:9
msgctxt "menu"
msgid "&Open <b>%1</b>\n"
msgstr "&Ouvrir <b>%1</b>\n"

#, fuzzy
#| msgid "Closed"
msgid "Close"
msgstr "Fermé"

msgid "Save"
msgstr ""

msgid "%n file"
msgid_plural "%n files"
msgstr[0] "%n fichier"
msgstr[1] "%n fichiers"

msgid ""
"long "
"text"
msgstr "texte long"

#~ msgid "Old"
#~ msgstr "Vieux"
"""

TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en-US"/><body>
<tu tuid="7"><note>A menu.</note><prop type="x-context">menu</prop>
<tuv xml:lang="en-US"><seg>Press <bpt i="1">&lt;b&gt;</bpt>OK<ept i="1">&lt;/b&gt;</ept> <!-- no text -->now</seg></tuv>
<tuv xml:lang="fr"><seg>Appuyez &amp; validez</seg></tuv></tu>
<tu><tuv lang="en-US"><seg>Close</seg></tuv><tuv lang="fr"><seg>Fermer</seg></tuv></tu>
<tu><tuv lang="en-US"><seg>Open</seg></tuv><tuv lang="de"><seg>Öffnen</seg></tuv></tu>
</body></tmx>"""

XLIFF_1 = """<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
<file source-language="en" target-language="fr" datatype="plaintext" original="a"><body>
<trans-unit id="1" resname="ok"><source>Press <g id="1">OK</g><x id="2"/></source>
<target>Appuyez <g id="1">OK</g><x id="2"/></target><note>A button.</note></trans-unit>
<trans-unit id="2"><source>Close</source><target state="needs-review-translation">Fermé</target>
<alt-trans><source>Closed</source><target>Fermé</target></alt-trans></trans-unit>
<trans-unit id="3"><source>Save</source></trans-unit>
<trans-unit id="4" translate="no"><source>KDE</source><target>KDE</target></trans-unit>
<trans-unit id="5"><source>New</source><target state="new">New</target></trans-unit>
</body></file></xliff>"""

XLIFF_2 = """<xliff version="2.0" xmlns="urn:oasis:names:tc:xliff:document:2.0" srcLang="en" trgLang="fr"><file id="f">
<unit id="1"><notes><note>A button.</note></notes>
<segment state="translated"><source>Press <pc id="1">OK</pc></source>
<target>Appuyez <pc id="1">OK</pc></target></segment>
<ignorable><source> </source></ignorable>
<segment state="initial"><source>Close</source><target>Close</target></segment></unit>
<unit id="2"><segment><source>Save</source></segment></unit>
<group id="g" translate="no"><unit id="3"><segment><source>KDE</source><target>KDE</target></segment></unit></group>
</file></xliff>"""

XML_FILES = (("a.tmx", TMX), ("a.xlf", XLIFF_1), ("b.xlf", XLIFF_2))
CHARSETS = (
    "UTF-16", "UTF-32", "utf-7", "cp037", "koi8-r", "shift_jis", "iso2022_jp", "rot13", "hex", "zip", "idna",
    "punycode",
    "unicode_escape", "undefined", "mbcs", "ascii", "x" * 5_000, "../../etc", "UTF-8 charset=koi8-r", "\\0", "%s", "",
)  # fmt: skip
PLURAL_RULES = (
    "", "nplurals=2", "nplurals=x; plural=y;", "nplurals=2; plural=n/0;", "nplurals=2; plural=n%0;", "plural=n",
    "nplurals=2; plural=9**9**9**9;", "nplurals=2; plural=__import__('os').system('x');", "nplurals=-1; plural=-n;",
    f"nplurals=2; plural={'(' * 5_000}n{')' * 5_000};", f"nplurals=2; plural={'n+' * 5_000}n;",
    f"nplurals=2; plural={'!' * 5_000}n;", f"nplurals=2; plural={'n?' * 500}1{':0' * 500};", f"nplurals={'9' * 5_000};",
)  # fmt: skip
PLURAL = 'msgid "a"\nmsgid_plural "b"\n'
PO_ENDS = (
    'msgid "a"\nmsgstr "b\n', 'msgid "a\nmsgstr "b"\n', 'msgid "a"\nmsgstr "b" "c\n', 'msgid a\nmsgstr b\n', '"lost"\n',
    'msgid "a"\nmsgid "b"\nmsgstr ""\n', 'msgid "a"\nmsgstr "a"\nmsgid "a"\nmsgstr "b"\n' * 3, 'msgid "a"\n', "msgid",
    'msgctxt "a"\nmsgctxt "b"\nmsgid "c"\nmsgstr "d"\n', 'msgstr "b"\nmsgid "a"\n', 'domain "x"\n', "#", "#|", "#~",
    "#,",
    "#:", "#.", "# ", "#~|", '#| msgid "a', "#~ msgid", '#~ msgid "a"\n', '#~ msgid "a"\nmsgid "b"\nmsgstr "c"\n',
    "#| \n",
    f'{PLURAL}msgstr[99] "c"\n', f'{PLURAL}msgstr[99999999999] "c"\n', f'{PLURAL}msgstr[-1] "c"\n',
    f'{PLURAL}msgstr "c"\n',
    f'{PLURAL}msgstr[x] "c"\n', f'{PLURAL}msgstr[] "c"\n', f'{PLURAL}msgstr[0 "c"\n',
    f'{PLURAL}msgstr[{"9" * 5_000}] "c"\n',
    f'{PLURAL}msgstr[1] "d"\nmsgstr[0] "c"\n', f'{PLURAL}msgstr[0] "c"\nmsgstr[0] "d"\n', PLURAL, 'msgid_plural "b"\n',
    PLURAL + "".join(f'msgstr[{number}] "c"\n' for number in range(20_000)), 'msgid "a"\nmsgstr[0] "b"\n',
    'msgid "\\"\nmsgstr "\\\\"\n', 'msgid "\\x\\777\\u12\\8"\nmsgstr "\\"\n', 'msgid "\\"\nmsgstr "b"\n',
    "<<<<<<< HEAD\n",
    'msgid "_n: "\nmsgstr ""\n', 'msgid "_: \\n"\nmsgstr "_: \\n"\n', 'msgid "_n: a\\n"\n"b"\nmsgstr "c\\nd\\ne"\n',
    "\x1a",
    'msgid "_:"\nmsgstr "a"\n', 'msgid "_: a"\nmsgstr "a"\n', 'msgid ""\nmsgstr "a"\n' * 2,
    "msgid\x00\"a\"\nmsgstr \"b\"\n",
    'msgid "a"\nmsgstr "b"\n' * 20_000, "#~ " * 20_000, "# a\n" * 20_000, '"a"\n' * 20_000, "\n" * 20_000,
    'msgid "a"\nmsgstr ""\n' + '"b"\n' * 20_000, "#, fuzzy\n" * 20_000, '#| msgid "a"\n' * 20_000,
    "msgid \"\" " * 20_000,
)  # fmt: skip


def some(chance: random.Random) -> tuple[str, bytes]:
    """Return name and content of a valid file."""
    texts = [("a.po", PO), *XML_FILES]
    return chance.choice([*((name, text.encode()) for name, text in texts), ("a.mo", compiled(chance.choice("<>")))])


def compiled(order: str = "<") -> bytes:
    """Return PO as msgfmt compiles it: little endian, or with `>` big endian."""
    header = "Language: fr\nContent-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n > 1);\n"
    texts = {
        "": header,
        "%n file\0%n files": "%n fichier\0%n fichiers",
        "long text": "texte long",
        "menu\4&Open <b>%1</b>\n": "&Ouvrir <b>%1</b>\n",
    }
    start = 28 + 16 * len(texts)
    tables, body = [], b""
    for side in (texts.keys(), texts.values()):
        for text in side:
            tables += [len(text.encode()), start + len(body)]
            body += text.encode() + b"\0"
    head = [0x950412DE, 0, len(texts), 28, 28 + 8 * len(texts), 0, start]
    return struct.pack(f"{order}{7 + len(tables)}I", *head, *tables) + body


def of_po_charset(chance: random.Random) -> tuple[str, bytes]:
    """Declare a charset that is not the one of the bytes, or that is none."""
    text = PO.replace("UTF-8", chance.choice(CHARSETS)).encode(chance.choice(("utf-8", "latin-1", "cp037", "utf-16")))
    return "a.po", text


def of_po_plural_rule(chance: random.Random) -> tuple[str, bytes]:
    """Give the header another rule."""
    return "a.po", PO.replace("nplurals=2; plural=(n > 1);", chance.choice(PLURAL_RULES)).encode()


def of_po_entry(chance: random.Random) -> tuple[str, bytes]:
    """Put a malformed entry at the end, in the middle or at the start."""
    parts = PO.split("\n\n")
    parts.insert(chance.choice((len(parts), len(parts) // 2, 0)), chance.choice(PO_ENDS))
    return chance.choice(("a.po", "a.pot")), "\n\n".join(parts).encode()


def of_po_quotes(chance: random.Random) -> tuple[str, bytes]:
    """Remove or double a quote or a backslash."""
    places = [place for place, letter in enumerate(PO) if letter in '"\\']
    place = chance.choice(places)
    return "a.po", (PO[:place] + chance.choice(("", '""', "\\")) + PO[place + 1 :]).encode()


def of_mo_numbers(chance: random.Random) -> tuple[str, bytes]:
    """Change one or several of the numbers before the texts: magic, counts, lengths, offsets."""
    content = bytearray(compiled(chance.choice("<>")))
    for _ in range(chance.choice((1, 1, 4))):
        number = chance.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, len(content), chance.randrange(400)))
        struct.pack_into(chance.choice("<>") + "I", content, 4 * chance.randrange(7 + 16), number)
    return "a.mo", bytes(content)


def of_mo_overlap(chance: random.Random) -> tuple[str, bytes]:
    """Let 20,000 entries share one large text: 320 KB that would be 20 GB in memory."""
    number, order = 20_000, chance.choice("<>")
    start = 28 + 8 * number
    text = b"a" * 1_000_000
    table = struct.pack(f"{order}2I", len(text), start) * number
    return "a.mo", struct.pack(f"{order}7I", 0x950412DE, 0, number, 28, 28, 0, start) + table + text


def of_xml_entities(chance: random.Random) -> tuple[str, bytes]:
    """Declare entities that grow, that are outside of the file, or that call themselves, and use them."""
    bomb = "".join(f'<!ENTITY e{one + 1} "{f"&e{one};" * 10}">' for one in range(12))
    place = chance.choice(
        ("secret.txt", "file:secret.txt", "http://127.0.0.1:PORT/secret.txt", "ftp://127.0.0.1:PORT/x")
    )
    calls = [f"%e{one};" * 10 for one in range(8)]
    nested = "".join(f"<!ENTITY % e{one} '{call}'>" for one, call in enumerate(calls, start=1))
    heads = (
        f'[<!ENTITY e0 "lol">{bomb}]',
        f'[<!ENTITY e12 "{"a" * 100_000}">]',
        f'[<!ENTITY e12 SYSTEM "{place}">]',
        f'[<!ENTITY e12 PUBLIC "x" "{place}">]',
        f'[<!ENTITY % other SYSTEM "{place}"> %other;]',
        f'[<!ENTITY % e0 "{"a" * 1_000}">{nested} %e8;]',
        '[<!ENTITY e12 "&e13;"><!ENTITY e13 "&e12;">]',
        f'SYSTEM "{place}"',
        f'PUBLIC "-//LISA OSCAR:1998//DTD for Translation Memory eXchange//EN" "{place}"',
        f'SYSTEM "{place}" [<!ATTLIST tu tuid CDATA "{"a" * 50_000}">]',
        f'[<!ATTLIST tu tuid CDATA "{"a" * 50_000}"><!NOTATION n SYSTEM "{place}">]',
    )
    name, text = chance.choice(XML_FILES)
    root = "tmx" if name == "a.tmx" else "xliff"
    text = text.replace('<!DOCTYPE tmx SYSTEM "tmx14.dtd">', "")
    text = text.replace(f"<{root} ", f"<!DOCTYPE {root} {chance.choice(heads)}>\n<{root} ", 1)
    return name, text.replace(
        "Close", chance.choice(("&e12;", "&e12;" * 1_000, '<x id="&e12;"/>', "&secret;"))
    ).encode()


def of_xml_includes(chance: random.Random) -> tuple[str, bytes]:
    """Point to other files by the means that XML has besides entities."""
    name, text = chance.choice(XML_FILES)
    place = chance.choice(("secret.txt", "http://127.0.0.1:PORT/secret.txt"))
    ways = (
        f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{place}" parse="text"/>',
        f'<?xml-stylesheet href="{place}"?><?xml-model href="{place}"?>',
        f'<skl xsi:schemaLocation="urn:x {place}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"/>',
        f'<skl><external-file href="{place}"/></skl><skeleton href="{place}"/>',
        f'<b xml:base="http://127.0.0.1:PORT/"><include href="{place}"/></b>',
    )
    return name, text.replace("Close", "Close" + chance.choice(ways)).encode()


def of_xml_shape(chance: random.Random) -> tuple[str, bytes]:
    """Nest, repeat and lengthen elements and attributes far beyond any real file."""
    name, text = chance.choice(XML_FILES)
    many = chance.choice((200, 10_000, 200_000))
    parts = (
        "<g>" * many + "a" + "</g>" * many,
        "<g>" * many,
        "</g>" * many,
        "<x/>" * many,
        "<!-- a -->" * many,
        "<?a b?>" * many,
        "<![CDATA[<a>]]>" * many,
        "&#65;" * many,
        f'<x id="{"a" * many * 60}"/>',
        f"<x {' '.join(f'a{number}={chr(34)}b{chr(34)}' for number in range(many // 4))}/>",
        f"<x {' '.join(f'xmlns:a{number}={chr(34)}b{chr(34)}' for number in range(min(many, 10_000)))}/>",
        f"<{'a' * many * 10}/>",
        "a" * many * 60,
        "&#0;", "&#x110000;", "&#xD800;", "&nbsp;", "&;", "<", "]]>", "\x0b", "\ufffe", "<a:b/>", "<x x='1' x='2'/>",
        "<seg>a</seg>", "<source>a</source>", "<target/>", "<tu/>", "<trans-unit/>", "<unit/>", "<segment/>", "</tmx>",
    )  # fmt: skip
    at = chance.choice(("Close", "Press ", "<body>", "KDE"))
    return name, text.replace(at, at + chance.choice(parts)).encode()


def of_xml_dialect(chance: random.Random) -> tuple[str, bytes]:
    """Leave out or change what identifies the format: namespaces, versions, languages, elements, the encoding."""
    name, text = chance.choice(XML_FILES)
    changes = (
        (' xmlns="urn:oasis:names:tc:xliff:document:1.2"', ""),
        (' xmlns="urn:oasis:names:tc:xliff:document:2.0"', ""),
        ("document:2.0", "document:2.1"),
        ('version="2.0"', 'version="2.1"'),
        ('version="1.2"', 'version="9"'),
        ("<xliff ", '<xliff xmlns:a="urn:a" a:version="1" '),
        ("<source>", '<source xmlns="urn:other">'),
        ('xml:lang="en-US"', ""), ('lang="en-US"', 'lang=""'), ('lang="fr"', 'lang="x\u2028y"'),
        ('source-language="en"', ""), ('target-language="fr"', ""), ('srcLang="en"', ""), ('trgLang="fr"', ""),
        ("<tmx", "<html"), ("tmx>", "html>"), ("<file ", "<File "), ("<seg>", "<SEG>"),
        ("UTF-8", "UTF-16"), ("UTF-8", "latin-1"), ("UTF-8", "x-none"), ('version="1.0"', 'version="9.9"'),
        ("<?xml", " <?xml"), ("</body>", ""), ("<body>", ""),
    )  # fmt: skip
    for old, new in chance.sample(changes, 12):
        text = text.replace(old, new)
    return name, text.encode(chance.choice(("utf-8", "utf-8", "latin-1", "utf-16", "utf-8-sig")), "replace")


def of_encoding(chance: random.Random) -> tuple[str, bytes]:
    """Write a file in another encoding, with or without its mark, or with other line ends."""
    name, content = some(chance)
    text = content.decode("latin-1" if name == "a.mo" else "utf-8")
    if chance.random() < 0.5:
        return name, text.replace("\n", chance.choice(("\r", "\r\n", "\n\r", "\u2028", "\x85", "\0\n"))).encode()
    encoding = chance.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "utf-7", "cp037"))
    return name, text.encode(encoding, "replace")


def of_long_line(chance: random.Random) -> tuple[str, bytes]:
    """Put a line of 10 MB into a file."""
    name, content = some(chance)
    part = chance.choice((b"a", b"\\", b'"', b"\\n", b"%1 ", b"_n: ", b"#", b"&lt;", b"\xc3\xa9", b"<b>", b"\0", b" "))
    line = (part * (10_000_000 // len(part) + 1))[:10_000_000]
    places = [place for place in range(len(content)) if content[place : place + 1] in (b" ", b'"', b"\n", b">")]
    place = chance.choice(places)
    return name, content[:place] + line + content[place:]


def of_gzip(chance: random.Random) -> tuple[str, bytes]:
    """Pack a damaged file, or damage a packed one; seldom, pack 300 MB."""
    name, content = some(chance)
    how = chance.randrange(8)
    if how == 0:
        return f"{name}.gz", gzip.compress(b"#" * 3_000_000, 9) * 100
    if how < 4:
        return f"{name}.gz", of_bytes(chance, gzip.compress(content, mtime=0))
    return f"{name}.gz", gzip.compress(of_bytes(chance, content), mtime=0)


def of_any_bytes(chance: random.Random) -> tuple[str, bytes]:
    """Damage the bytes of a file."""
    name, content = some(chance)
    return name, of_bytes(chance, content)


def of_several(chance: random.Random) -> tuple[str, bytes]:
    """Damage the bytes of a file three times."""
    name, content = some(chance)
    for _ in range(3):
        content = of_bytes(chance, content)[:1_000_000]
    return name, content


def of_other_kind(chance: random.Random) -> tuple[str, bytes]:
    """Give a file the name of another kind."""
    return chance.choice(("a.po", "a.pot", "a.mo", "a.tmx", "a.xlf")), some(chance)[1]


CHANGES: tuple[Callable[[random.Random], tuple[str, bytes]], ...] = (
    of_any_bytes, of_po_entry, of_xml_shape, of_mo_numbers, of_po_charset, of_xml_entities, of_gzip, of_po_quotes,
    of_xml_dialect, of_encoding, of_po_entry, of_xml_includes, of_po_plural_rule, of_several, of_xml_entities,
    of_mo_numbers, of_other_kind, of_po_entry, of_any_bytes, of_xml_shape,
)  # fmt: skip
# One of so many files has a line of 10 MB, or shares one text: these take the most time.
LARGE_EVERY = 50


def mutation(number: int, base: int) -> tuple[str, bytes]:
    """Return name and content of a damaged file; PORT in it stands for a port of this machine."""
    chance = random.Random(f"{base}.{number}")
    if number % LARGE_EVERY == LARGE_EVERY - 1:
        change = of_mo_overlap if number % (4 * LARGE_EVERY) == LARGE_EVERY - 1 else of_long_line
    else:
        change = CHANGES[number % len(CHANGES)]
    return change(chance)
