"""Define the sentence patterns: an English and a French template with the same slots.

Must not know how words are drawn or inflected. Slots: v a verb and o its object, w another verb and
y its object; x, z further things; p people; t, u attributes of o; q, s adjectives after "to be" for o and t, fit and
unfit such that say whether o is fit for use, once and because the same for x; app, menu, button, key, number, how, when
and reason constants. A colon precedes a form, which phrases.py defines.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """A template pair and the words that may fill it.

    `o`, `x` and `z` name the tags (words.py) of which the nouns in these slots need one, "" for any; `number` is
    "singular", "plural" or "any" for o; `verbs` are the only verbs that v may be, () for all.
    """

    english: str
    french: str
    o: str = ""
    x: str = "C"
    z: str = "C"
    number: str = "any"
    verbs: tuple[str, ...] = ()


P = Pattern
_FILE_VERBS = ("open", "edit", "print", "convert", "compress", "encrypt", "sign", "read", "play", "translate", "export")
_PLACE_VERBS = ("save", "copy", "move", "export", "extract", "install", "insert", "paste", "create", "write")
_KNOWN_VERBS = ("replace", "rename", "delete", "open", "duplicate", "edit", "restore", "update", "select")

_BUTTONS = [
    P("{v} {o:the}", "{v} {o:the}"),
    P("{v} {o:the} {how}", "{v} {how} {o:the}"),
    P("{v} {o:all} of {x:the}", "{v} {o:all} de {x:the}", o="DE", number="plural"),
    P("Create {o:a} in {x:the}", "Créer {o:a} dans {x:the}", o="DE"),
    P("{v} {o:the} with {app}...", "{v} {o:the} avec {app}...", o="D", verbs=_FILE_VERBS),
    P("Do not {v} {o:the} {when}", "Ne pas {v} {o:the} {when}"),
    P("{v} only {o:the}", "Ne {v} que {o:the}", number="plural"),
    P("Copy {o:the} from {x:the} to {z:the}", "Copier {o:the} de {x:the} vers {z:the}", o="DE"),
    P("Add {o:the} to {x:the}", "Ajouter {o:the} à {x:the}", o="DE"),
    P("Send {o:the} to {p:the}", "Envoyer {o:the} à {p:the}", o="DX"),
    P("Sort {o:the} by {t}", "Trier {o:the} par {t}", o="DE", number="plural"),
    P("Show {o:the} on {x:the}", "Afficher {o:the} sur {x:the}", o="DEU", x="W"),
    P("{v} {o:the} without {w:doing} {y:the}", "{v} {o:the} sans {w} {y:the}"),
    P("Show {o:the} when {app} starts", "Afficher {o:the} au démarrage de {app}", o="U"),
    P("Show {t:the} and {u:the} of {o:the}", "Afficher {t:the} et {u:the} de {o:the}"),
    P("Remember {t:the} of {o:the} for {app}", "Mémoriser {t:the} de {o:the} pour {app}"),
    P("Show a warning before {v:doing} {o:the}", "Afficher un avertissement avant {v:the_action} de {o:the}"),
    P("Close the application after {v:doing} {o:the}", "Fermer l'application après {v:the_action} de {o:the}"),
    P("Replace {t:the} of {o:the} with %1", "Remplacer {t:the} de {o:the} par %1"),
]
_INSTRUCTIONS = [
    P("Click here to {v} {o:the}.", "Cliquez ici pour {v} {o:the}."),
    P('Click "{button}" to {v} {o:the}.', "Cliquez sur « {button} » pour {v} {o:the}."),
    P("Press {key} to {v} {o:the}.", "Appuyez sur {key} pour {v} {o:the}."),
    P('Use the "{menu}" menu to {v} {o:the}.', "Utilisez le menu « {menu} » pour {v} {o:the}."),
    P("Please {v} {o:the} before {w:doing} {y:the}.", "Veuillez {v} {o:the} avant de {w} {y:the}."),
    P("You must {v} {o:the} to {w} {y:the}.", "Vous devez {v} {o:the} pour {w} {y:the}."),
    P("Drag {o:the} onto {x:the} to {v} {o:it}.", "Faites glisser {o:the} sur {x:the} pour {o:it} {v}.",
      o="DE", x="CW"),
    P("Enter {t:the} of {o:the}:", "Saisissez {t:the} de {o:the} :"),
    P("Choose {t:the} of {o:the} in the list below.", "Choisissez {t:the} de {o:the} dans la liste ci-dessous."),
    P("Check this box to {v} {o:the} {how}.", "Cochez cette case pour {v} {how} {o:the}."),
    P('To {v} {o:the}, open the "{menu}" menu.', "Pour {v} {o:the}, ouvrez le menu « {menu} »."),
    P("Connect {x:the} to {z:the} to {v} {o:the}.", "Connectez {x:the} à {z:the} pour {v} {o:the}.",
      o="DS", x="HK", z="L"),
    P("Please select {o:a} or {x:a}.", "Veuillez sélectionner {o:a} ou {x:a}.", o="DE", x="DE", number="singular"),
    P("Make sure that {x:the} {x:be} {once} before {v:doing} {o:the}.",
      "Assurez-vous que {x:the} {x:be} {once} avant de {v} {o:the}.", x="DHGSK"),
    P("Please verify {t:the} and {u:the} of {o:the}.", "Veuillez vérifier {t:the} et {u:the} de {o:the}."),
]  # fmt: skip
_QUESTIONS = [
    P("Do you want to {v} {o:the}?", "Voulez-vous {v} {o:the} ?"),
    P("Do you really want to {v} {o:the} {how}?", "Voulez-vous vraiment {v} {how} {o:the} ?"),
    P("Are you sure you want to {v} {o:this}?", "Êtes-vous sûr de vouloir {v} {o:this} ?"),
    P("{o:this} already {o:exists}. Do you want to {v} {o:it}?", "{o:this} {o:exists} déjà. Voulez-vous {o:it} {v} ?",
      o="DEG", verbs=_KNOWN_VERBS),
    P("{o:which} do you want to {v}?", "{o:which} voulez-vous {v} ?"),
    P("How many {o} do you want to {v}?", "Combien de {o} voulez-vous {v} ?", number="plural"),
    P("Where do you want to {v} {o:the}?", "Où voulez-vous {v} {o:the} ?", verbs=_PLACE_VERBS),
    P("Do you want to {v} {o:the} before {w:doing} {y:the}?", "Voulez-vous {v} {o:the} avant de {w} {y:the} ?"),
    P("Should {app} {v} {o:the} {when}?", "{app} doit-il {v} {o:the} {when} ?"),
    P("Why {o:has} {o:the} been {v:done}?", "Pourquoi {o:the} {o:has_it} été {v:done} ?"),
    P("What do you want to do with {o:the}?", "Que voulez-vous faire de {o:the} ?"),
]  # fmt: skip
_ERRORS = [
    P("{o:the} could not be {v:done}.", "{o:the} {o:has_not} pu être {v:done}."),
    P("{o:the} cannot be {v:done}: {reason}.", "{o:the} {o:cannot} être {v:done} : {reason}."),
    P("Unable to {v} {o:the}: {reason}.", "Impossible de {v} {o:the} : {reason}."),
    P("Failed to {v} {o:the}.", "{v:the_action} de {o:the} a échoué."),
    P("An error occurred while {v:doing} {o:the}.", "Une erreur est survenue pendant {v:the_action} de {o:the}."),
    P("{app} could not {v} {o:the}.", "{app} n'a pas pu {v} {o:the}."),
    P("{o:the} {o:be} {unfit} and cannot be {v:done}.", "{o:the} {o:be} {unfit} et {o:cannot} être {v:done}."),
    P("{app} cannot {v} {o:the} because {x:the} {x:be} {because}.",
      "{app} ne peut pas {v} {o:the} parce que {x:the} {x:be} {because}.", x="DHGSK"),
    P("You do not have permission to {v} {o:the}.", "Vous n'avez pas l'autorisation de {v} {o:the}."),
    P("No {o} was found in {x:the}.", "{o:no} n'a été {o:found} dans {x:the}.", o="DE", number="singular"),
    P("{o:the} {o:does} not exist in {x:the}.", "{o:the} {o:exists_not} dans {x:the}.", o="DE"),
    P("Access to {o:the} has been denied.", "L'accès à {o:the} a été refusé.", o="DHSK"),
    P("{p:the} {p:does} not have the right to {v} {o:the}.", "{p:the} {p:has_not} le droit de {v} {o:the}."),
    P("Error: {o:the} {o:be} not {fit}.", "Erreur : {o:the} {o:be_not} {fit}."),
    P("{t:the} of {o:the} is {s}.", "{t:the} de {o:the} est {s}."),
    P("Warning: {t:the} of {o:the} is now {s}.", "Attention : {t:the} de {o:the} est maintenant {s}."),
    P("Warning: {o:the} will be {v:done} {how}.", "Attention : {o:the} {o:will_be} {how} {v:done}."),
    P("It is not possible to {v} {o:a} in {x:a}.", "Il n'est pas possible de {v} {o:a} dans {x:a}.", o="DE"),
    P("{app} requires {o:a} to {w} {y:the}.", "{app} a besoin de {o:a} pour {w} {y:the}.", o="HG", number="singular"),
]  # fmt: skip
_STATUS = [
    P("{v:doing} {o:the}...", "{v:action} de {o:the}..."),
    P("{v:doing} {o} %1 of %2...", "{v:action} de {o:the} %1 sur %2...", number="singular"),
    P("{v:doing} {o:the} may take a few minutes.", "{v:the_action} de {o:the} peut prendre quelques minutes."),
    P("{app} has finished {v:doing} {o:the}.", "{app} a terminé {v:the_action} de {o:the}."),
    P("{o:the} {o:has} been {v:done} successfully.", "{o:the} {o:has} été {v:done} avec succès."),
    P("{o:the} will be {v:done} {when}.", "{o:the} {o:will_be} {v:done} {when}."),
    P("%1 {o} have been {v:done}.", "%1 {o} ont été {v:done}.", number="plural"),
    P("%1 of %2 {o} could not be {v:done}.", "%1 {o} sur %2 n'ont pas pu être {v:done}.", number="plural"),
    P("{x:the} {x:contains} {number} {o}.", "{x:the} {x:contains} {number} {o}.", o="DE", number="plural"),
    P("{o:the} {o:has} been {v:done} by {p:the}.", "{o:the} {o:has} été {v:done} par {p:the}."),
    P("{p:the} {p:has} {v:past} {o:the}.", "{p:the} {p:has} {v:past} {o:the}."),
    P("{app} is {v:doing} {o:the}.", "{app} est en train de {v} {o:the}."),
    P("There {o:be} {o:a} in {x:the}.", "Il y a {o:a} dans {x:the}.", o="DE"),
    P("{o:your} {o:be} now {q}.", "{o:your} {o:be} maintenant {q}."),
    P("{o:each} must be {v:done} {when}.", "{o:each} doit être {v:done} {when}.", number="singular"),
    P(
        "{number} {o} will be {v:done} if you continue.",
        "{number} {o} seront {v:done} si vous continuez.",
        number="plural",
    ),
    P("Since version %1, {app} can {v} {o:a}.", "Depuis la version %1, {app} peut {v} {o:a}."),
    P("{t:the} of {o:the} has changed from %1 to %2.", "{t:the} de {o:the} est {t:passed} de %1 à %2."),
]
_TOOLTIPS = [
    P("This option lets you {v} {o:the}.", "Cette option vous permet de {v} {o:the}."),
    P("If this option is enabled, {o:the} will be {v:done} {how}.",
      "Si cette option est activée, {o:the} {o:will_be} {how} {v:done}."),
    P('The "{button}" button lets you {v} {o:the}.', "Le bouton « {button} » permet de {v} {o:the}."),
    P("It is recommended to {v} {o:the} {when}.", "Il est recommandé de {v} {o:the} {when}."),
    P("Only {p:the} can {v} {o:the}.", "{p:only} {p:the} {p:can} {v} {o:the}."),
    P("You can only {v} {o:a} in {x:the}.", "Vous ne pouvez {v} que {o:a} dans {x:the}.", o="DE", number="singular"),
    P("Tip: you can {v} {o:the} with {key}.", "Astuce : vous pouvez {v} {o:the} avec {key}."),
    P("Note: {o:all} must be {v:done} before {w:doing} {y:the}.",
      "Remarque : {o:all} doivent être {v:done} avant {w:the_action} de {y:the}.", number="plural"),
    P("{v} {o:the} as soon as {x:the} {x:be} {once}", "{v} {o:the} dès que {x:the} {x:be} {once}", x="DHGTK"),
    P("Help: how to {v} {o:a} with {app}", "Aide : comment {v} {o:a} avec {app}"),
    P("{v} {o:the} and {w} {y:the} {when}", "{v} {o:the} et {w} {y:the} {when}"),
]  # fmt: skip

PATTERNS = [*_BUTTONS, *_INSTRUCTIONS, *_QUESTIONS, *_ERRORS, *_STATUS, *_TOOLTIPS]
