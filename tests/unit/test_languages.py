"""Test languages: codes in any style match the codes of a model or a file."""

import pytest

from mtloop.languages import (
    LANGUAGE_TOKEN,
    advise,
    base_code,
    find_key,
    is_same_language,
    language_name,
    match_language,
    script_of,
    script_of_text,
)

NLLB = ["eng_Latn", "fra_Latn", "zho_Hans", "zho_Hant", "arb_Arab", "arz_Arab", "nob_Latn", "nno_Latn", "pes_Arab"]
NLLB += ["prs_Arab", "srp_Cyrl", "hrv_Latn", "lvs_Latn", "est_Latn", "por_Latn", "spa_Latn"]
MBART = ["ar_AR", "de_DE", "en_XX", "es_XX", "fr_XX", "pt_XX", "zh_CN"]
M2M100 = ["ar", "en", "fr", "he", "no", "ns", "pt", "sr", "zh"]
MARIAN = [">>fr<<", ">>fr_CA<<", ">>fr_FR<<", ">>pt<<", ">>pt_br<<", ">>zho<<", ">>cmn_Hans<<", ">>sr_Latn<<"]


@pytest.mark.parametrize(
    ("wanted", "known", "code"),
    [
        *[(wanted, NLLB, "fra_Latn") for wanted in ("fr", "fra", "fr_FR", "fr-CA", "FRA_latn", "French", "français")],
        *[(wanted, MBART, "fr_XX") for wanted in ("fr", "fra", "fr_FR", "fra_Latn", "french")],
        *[(wanted, M2M100, "fr") for wanted in ("fr", "fra", "fr_XX", "fra_Latn", "French")],
        *[(wanted, MARIAN, ">>fr<<") for wanted in ("fr", "fra_Latn", "French", ">>fr<<")],
        ("fr_CA", MARIAN, ">>fr_CA<<"),
        ("pt-BR", MARIAN, ">>pt_br<<"),
        ("zh", MARIAN, ">>zho<<"),
        ("cmn_Hans", MARIAN, ">>cmn_Hans<<"),
        ("zh_TW", NLLB, "zho_Hant"),  # the region says the script
        ("zh_CN", NLLB, "zho_Hans"),
        ("Simplified Chinese", NLLB, "zho_Hans"),
        ("zh", MBART, "zh_CN"),  # the only one
        ("ar", NLLB, "arb_Arab"),  # Standard Arabic, not Egyptian
        ("no", NLLB, "nob_Latn"),
        ("nn", NLLB, "nno_Latn"),
        ("nb", M2M100, "no"),
        ("lv", NLLB, "lvs_Latn"),
        ("iw", M2M100, "he"),
        ("ns", M2M100, "ns"),  # no code of any standard, but M2M100's
    ],
)
def test_match_language_finds_one_code(wanted, known, code):
    assert match_language(wanted, known) == [code]


# Some of MADLAD-400's, as its published vocabulary has them.
MADLAD = ["<2ar>", "<2ca>", "<2en>", "<2fr>", "<2fr_CA>", "<2ks>", "<2ks_Deva>", "<2nan_Latn_TW>", "<2sr>", "<2zh>"]
MADLAD += ["<2zh_Hant>", "<2zh_Latn>"]


@pytest.mark.parametrize(
    ("wanted", "token"),
    [
        *[(wanted, "<2fr>") for wanted in ("fr", "fra_Latn", "French", "<2fr>", "fr_FR", ">>fra<<")],
        *[("fra_CA", "<2fr_CA>"), ("cat_Latn", "<2ca>"), ("eng_Latn", "<2en>"), ("srp_Cyrl", "<2sr>")],
        *[
            ("zh", "<2zh>"),
            ("zho_Hans", "<2zh>"),
            ("zh_CN", "<2zh>"),
            ("zho_Hant", "<2zh_Hant>"),
            ("zh_TW", "<2zh_Hant>"),
        ],
        *[("kas_Deva", "<2ks_Deva>"), ("kas_Arab", "<2ks>"), ("arb_Arab", "<2ar>")],
    ],
)
def test_match_language_finds_one_language_token(wanted, token):
    assert match_language(wanted, MADLAD) == [token]


def test_find_key_matches_a_language_token():
    assert find_key("<2fr>", ["en", "fr"]) == "fr" and language_name("<2fr>") == "French"


@pytest.mark.parametrize("token", MADLAD)
def test_language_token_matches_those_of_languages_alone(token):
    assert LANGUAGE_TOKEN.match(token)
    others = ("<2>", "<2CA>", "<2Latn>", "<2translate>", "<2back_translated>", "<2en_xx_simple>", "<2zxx_xx_dtynoise>")
    assert not any(map(LANGUAGE_TOKEN.match, (*others, "fr", "2fr", f"{token} ", f" {token}", "<2fr", "<2f>")))


@pytest.mark.parametrize(
    ("wanted", "known", "codes"),
    [
        ("zh", NLLB, ["zho_Hans", "zho_Hant"]),
        ("Chinese", NLLB, ["zho_Hans", "zho_Hant"]),
        ("kr", ["knc_Arab", "knc_Latn"], ["knc_Arab", "knc_Latn"]),
        ("fr", [">>fr_CA<<", ">>fr_FR<<"], [">>fr_CA<<", ">>fr_FR<<"]),
    ],
)
def test_match_language_lists_ambiguous_candidates(wanted, known, codes):
    assert match_language(wanted, known) == codes
    assert advise(wanted, known) == f"Give one of {', '.join(codes)}."


@pytest.mark.parametrize(
    ("wanted", "known"),
    [
        *[("de", NLLB), ("zh_TW", MBART), ("sr_Latn", NLLB), ("pt_BR", [">>pt_PT<<"]), ("xyzzy", NLLB), ("", NLLB)],
        # A code without a script has the usual one of its language.
        *[("sr_Latn", M2M100), ("sr@latin", M2M100), ("sr_ME", M2M100), ("zh_Latn", M2M100), ("arb_Latn", M2M100)],
        *[("hi_Latn", ["hi"]), ("uz@cyrillic", ["uz"]), ("pa_PK", ["pa"]), ("pbu_Arab", ["pbt_Arab"])],
    ],
)
def test_match_language_refuses_another_script_or_region(wanted, known):
    assert match_language(wanted, known) == []


@pytest.mark.parametrize(
    ("wanted", "known", "code"),
    [
        *[
            (wanted, ["cat_Latn", "eng_Latn"], "cat_Latn")
            for wanted in ("ca@valencia", "ca_ES@valencia", "ca-valencia")
        ],
        *[("sr@latin", ["srp_Cyrl", "srp_Latn"], "srp_Latn"), ("sr_RS@latin", [">>sr_Latn<<"], ">>sr_Latn<<")],
        *[("uz@cyrillic", ["uz", "uz_Cyrl"], "uz_Cyrl"), ("be@tarask", ["bel_Cyrl"], "bel_Cyrl")],
        *[("de@euro", ["deu_Latn"], "deu_Latn"), ("tt@iqtelif", ["tat_Latn", "tat_Cyrl"], "tat_Latn")],
        *[("sr@ijekavian", NLLB, "srp_Cyrl"), ("sr@ijekavianlatin", ["srp_Cyrl", "srp_Latn"], "srp_Latn")],
        *[("en@boldquot", NLLB, "eng_Latn"), ("be@latin", ["bel_Cyrl", "bel_Latn"], "bel_Latn")],
        *[
            ("uz@Latn", ["uzn_Latn"], "uzn_Latn"),
            ("crh_Latn", ["en", "crh"], "crh"),
            ("ks@aran", ["kas_Arab"], "kas_Arab"),
        ],
        # of keys in rows
        *[("cat_Latn", keys, "ca") for keys in (["en", "ca"], ["en", "ca", "ca@valencia"])],
        *[("cat_Latn", ["en", "ca@valencia"], "ca@valencia"), ("ca", ["en", "ca@valencia"], "ca@valencia")],
        *[("ca@valencia", ["en", "ca", "ca@valencia"], "ca@valencia"), ("srp_Cyrl", ["sr", "sr@latin"], "sr")],
        *[("sr_Latn", ["sr", "sr@latin"], "sr@latin"), ("uzn_Latn", ["uz", "uz@cyrillic"], "uz")],
    ],
)
def test_match_language_understands_modifiers_of_gettext(wanted, known, code):
    assert match_language(wanted, known) == [code] and find_key(wanted, known) == code


def test_modifiers_of_gettext_have_a_script_and_a_name():
    codes = ("sr@latin", "sr@ijekavianlatin", "sr@ijekavian", "uz@Latn", "ks@devanagari", "ca@valencia", "en@boldquot")
    assert [script_of(code) for code in codes] == ["Latn", "Latn", "Cyrl", "Latn", "Deva", "Latn", "Latn"]
    assert [language_name(code) for code in codes] == [
        "Serbian", "Serbian", "Serbian", "Uzbek", "Kashmiri", "Catalan", "English",
    ]  # fmt: skip
    assert [base_code(code) for code in codes] == ["sr", "sr", "sr", "uz", "ks", "ca", "en"]


# NLLB's members of macrolanguages, and some languages beside them.
_CODES = """
aka_Latn als_Latn arb_Arab ars_Arab arz_Arab ayr_Latn azb_Arab azj_Latn bos_Latn ckb_Arab crh_Latn dik_Latn
est_Latn fuv_Latn gaz_Latn grn_Latn heb_Hebr hrv_Latn kas_Arab kas_Deva khk_Cyrl kmr_Latn knc_Arab knc_Latn
kon_Latn kor_Hang ltg_Latn lvs_Latn min_Latn nno_Latn nob_Latn npi_Deva ory_Orya pbt_Arab pes_Arab plt_Latn
prs_Arab quy_Latn srd_Latn srp_Cyrl swh_Latn taq_Latn taq_Tfng uzn_Latn ydd_Hebr yue_Hant zho_Hans zho_Hant
zsm_Latn
"""
NLLB_MACRO = _CODES.split()


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        *[("ak", "aka_Latn"), ("ar", "arb_Arab"), ("ay", "ayr_Latn"), ("az", "azj_Latn"), ("din", "dik_Latn")],
        *[("et", "est_Latn"), ("fa", "pes_Arab"), ("fa_AF", "prs_Arab"), ("ff", "fuv_Latn"), ("gn", "grn_Latn")],
        *[("kg", "kon_Latn"), ("ku", "kmr_Latn"), ("lv", "lvs_Latn"), ("mg", "plt_Latn"), ("mn", "khk_Cyrl")],
        *[("ms", "zsm_Latn"), ("ne", "npi_Deva"), ("no", "nob_Latn"), ("om", "gaz_Latn"), ("or", "ory_Orya")],
        *[("ps", "pbt_Arab"), ("ps_AF", "pbt_Arab"), ("qu", "quy_Latn"), ("sc", "srd_Latn"), ("sq", "als_Latn")],
        *[("sw", "swh_Latn"), ("uz", "uzn_Latn"), ("yi", "ydd_Hebr"), ("ko", "kor_Hang"), ("ko_KR", "kor_Hang")],
    ],
)
def test_match_language_finds_nllbs_member_of_a_macrolanguage(wanted, code):
    assert match_language(wanted, NLLB_MACRO) == [code]
    assert find_key(code, ["en", wanted]) == wanted  # and the key in the rows


@pytest.mark.parametrize(
    ("wanted", "candidates"),
    [
        *[("zh", "zho_Hans, zho_Hant"), ("kr", "knc_Arab, knc_Latn"), ("ks", "kas_Arab, kas_Deva")],
        *[("tmh", "taq_Latn, taq_Tfng"), ("az_IR", "azb_Arab, azj_Latn")],
        *[("sr@latin", "srp_Cyrl"), ("sr@ijekavianlatin", "srp_Cyrl"), ("uz@cyrillic", "uzn_Latn")],
    ],
)
def test_advise_lists_members_and_other_scripts(wanted, candidates):
    assert len(match_language(wanted, NLLB_MACRO)) != 1
    assert advise(wanted, NLLB_MACRO) == f"Give one of {candidates}."


def test_advise_lists_similar_codes():
    assert advise("tlh", M2M100).endswith("and 1 more.")


def test_find_key_matches_codes():
    assert find_key("fra_Latn", ["en", "fr"]) == "fr"
    assert find_key("fr", ["fr", "fr_FR"]) == "fr"
    assert find_key("fr", ["fr_CA", "fr_FR"]) is None
    assert find_key("de", ["en", "fr"]) is None


@pytest.mark.parametrize(
    ("code", "script"),
    [
        *[(code, "Thai") for code in ("th", "tha_Thai", "th_TH", ">>tha<<", "Thai")],
        *[("km", "Khmr"), ("lao", "Laoo"), ("my_XX", "Mymr"), ("bod_Tibt", "Tibt"), ("dz", "Tibt")],
        *[("zh", "Hans"), ("zh_TW", "Hant"), ("yue", "Hant"), ("lzh_Hani", "Hani"), ("cdo", "Hans")],
        *[("jv_Java", "Java"), ("nan_Latn", "Latn")],
        *[("ja", "Jpan"), ("jpn_Hira", "Hira"), ("ja_Latn", "Latn"), ("ko", "Kore"), ("jv", "Latn"), ("en", "Latn")],
        *[("qqq", None), ("nonsense words", None)],
    ],
)
def test_script_of_a_code_or_its_language(code, script):
    assert script_of(code) == script


def test_language_name_and_base_code():
    assert [language_name(code) for code in ("en", "en_XX", "eng_Latn", "fra", "zz9")] == [
        "English", "English", "English", "French", "zz9",
    ]  # fmt: skip
    assert [base_code(code) for code in ("cmn_Hans", "fra_Latn", "French", "jpn_Jpan", ">>pt_br<<")] == [
        "zh", "fr", "fr", "ja", "pt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "script"),
    [
        (["ฉันรักภาษาไทย", "abc"], "Thai"),
        (["你好世界"], "Hani"),
        (["私は日本語が好きです"], "Jpan"),  # 4 of its 10 letters are Chinese characters
        (["한국어를 사랑해"], "Kore"),
        (["Bonjour 你好"], None),
        (["Привет"], None),
        (["... 123", ""], None),
    ],
)
def test_script_of_text_is_that_of_most_letters(texts, script):
    assert script_of_text(texts) == script


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        *[("en", other, True) for other in ("eng", "English", "en_XX", "eng_Latn", ">>eng<<", "<2en>")],
        ("no", "nb", True), ("zh_Hans", "zh-Hans", True), ("foo", "foo", True), ("en", "fr", False),
        # A model may have both.
        ("zh", "zho_Hans", False), ("pt", "pt_BR", False), ("sr", "sr@latin", False), ("ca", "ca@valencia", False),
    ],
)  # fmt: skip
def test_is_same_language_in_any_spelling(one, other, expected):
    assert is_same_language(one, other) == is_same_language(other, one) == expected
