"""Define the closed vocabulary of the embedded corpus: every content word with its one translation.

Owns the word tables and the rules that inflect their regular entries. Must not know the patterns. Tags define which
words go together, so that songs are played and printers are connected:
D documents, E elements of a document, U user interface, H hardware, S settings, G software, T tasks, P people,
A attributes; C what things are in, W what they are shown on, L what they are connected to, K storage devices, M media,
X text, I images, R software that runs.
"""

from __future__ import annotations

from dataclasses import dataclass

# One entry: english[/plural] = french[/plural] gender[h] TAGS; "h" marks an aspirated h (no elision: la hauteur).
_NOUNS = """
file = fichier m D; folder = dossier m DC; document = document m DCX; image = image f DI; photo = photo f DI
archive = archive f DC; message = message m DCX; attachment = pièce jointe/pièces jointes f D; album = album m DCM
playlist = liste de lecture/listes de lecture f DCM; song = morceau m DM; video = vidéo f DM; script = script m D
note = note f DX; list = liste f DC; report = rapport m DCX; project = projet m DC; letter = lettre f DX
book = livre m DCX; drawing = dessin m DI; presentation = présentation f DC
database = base de données/bases de données f DC; article = article m DX; log = journal m DC
certificate = certificat m D; e-mail = courriel m DCX; invoice = facture f DX; calendar = agenda m DC
address book = carnet d'adresses/carnets d'adresses m DC; form = formulaire m DCX; history = historique m DC
recording = enregistrement m DM; animation = animation f DM; screenshot = capture d'écran/captures d'écran f DI
timetable = horaire m DX; contract = contrat m DX; logo = logo m DI
directory = répertoire m C
bookmark = signet m E; hyperlink = hyperlien m E; paragraph = paragraphe m EX; chapter = chapitre m EX
page = page f ECX; table = tableau m EC; line = ligne f E; column = colonne f E; cell = cellule f E
event = événement m E; appointment = rendez-vous/rendez-vous m E; address = adresse f E; comment = commentaire m EX
item = élément m E; chart = graphique m E; question = question f EX
window = fenêtre f U; tab = onglet m U; panel = panneau m UC; toolbar = barre d'outils/barres d'outils f U
menu = menu m U; dialog = boîte de dialogue/boîtes de dialogue f U; button = bouton m U
status bar = barre d'état/barres d'état f U; desktop = bureau m UW; clock = horloge f U; view = vue f U
tooltip = infobulle f U; icon = icône f UI; thumbnail = vignette f UI; terminal = terminal m U
notification = notification f U
printer = imprimante f H; scanner = scanner m H; keyboard = clavier m H; mouse/mice = souris f H; screen = écran m HW
camera = appareil photo/appareils photo m H; webcam = webcam f H; microphone = microphone m H
loudspeaker = haut-parleur mh H; battery = batterie f H; phone = téléphone m HLW; tablet = tablette f HLW
computer = ordinateur m HLW; server = serveur m HL; network = réseau m HL; router = routeur m HL
device = périphérique m H; graphics card = carte graphique/cartes graphiques f H; host = hôte m HL
disk = disque m K; hard disk = disque dur/disques durs m K; USB key = clé USB/clés USB f K
memory card = carte mémoire/cartes mémoire f K; drive = lecteur m K; partition = partition f K
option = option f S; setting = réglage m S; shortcut = raccourci m S; color = couleur f S; profile = profil m S
account = compte m S; filter = filtre m S; password = mot de passe/mots de passe m S; style = style m S
effect = effet m S; rule = règle f S; connection = connexion f S; activity = activité f S; alarm = alarme f S
sound = son m S; language = langue f S
plugin = module externe/modules externes m GR; extension = extension f GR; application = application f GR
program = programme m GR; tool = outil m GR; driver = pilote m G; package = paquet m G; font = police f G
theme = thème m G; dictionary = dictionnaire m G; game = jeu m GR; editor = éditeur m GR; browser = navigateur m GR
operation = opération f T; transfer = transfert m T; backup = sauvegarde f T; search = recherche f T
process = processus m T; session = session f T; print job = tâche d'impression/tâches d'impression f T
test = test m T; calculation = calcul m T
user = utilisateur m P; contact = contact m P; author = auteur m P; recipient = destinataire m P
sender = expéditeur m P; administrator = administrateur m P; guest = invité m P; friend = ami m P
developer = développeur m P; student = élève m P; member = membre m P; customer = client m P
person/people = personne f P; team = équipe f P; group = groupe m P
"""

# Here the tags are those of the things that have the attribute.
_ATTRIBUTES = """
name = nom m DEUHSGTPK; size = taille f DUIK; date = date f DET; format = format m D; width = largeur f UI
height = hauteur fh UI; position = position f EU; title = titre m DEU; path = chemin m D; type = type m DEHSK
description = description f DEHSGT; hash = hachage mh D; state = état m HSTK; quality = qualité f DH
duration = durée f MT; identifier = identifiant m EHPK; category = catégorie f DSG; location = emplacement m DU
origin = origine f DT; opacity = opacité f UI; version = version f DG; usage = utilisation f HSG
"""

# One entry: english[/participle/gerund] = infinitive | participle forms | action noun and gender | TAGS.
_VERBS = """
open = ouvrir | ouvert | ouverture f | D; close = fermer | fermé | fermeture f | DUR
save = enregistrer | enregistré | enregistrement m | DS; delete = supprimer | supprimé | suppression f | DESTP
remove = retirer | retiré | retrait m | EHGPK; copy = copier | copié | copie f | DE
move = déplacer | déplacé | déplacement m | DEU; rename = renommer | renommé | renommage m | DSK
print = imprimer | imprimé | impression f | XI; export = exporter | exporté | exportation f | DS
import = importer | importé | importation f | DS; download = télécharger | téléchargé | téléchargement m | DG
send/sent/sending = envoyer | envoyé | envoi m | D; compress = compresser | compressé | compression f | D
extract = extraire | extrait | extraction f | DE; convert = convertir | converti | conversion f | D
encrypt = chiffrer | chiffré | chiffrement m | DK; verify = vérifier | vérifié | vérification f | DSHXK
edit = modifier | modifié | modification f | DES; load = charger | chargé | chargement m | DG
reload = recharger | rechargé | rechargement m | DG; share = partager | partagé | partage m | DK
restore = restaurer | restauré | restauration f | DSU; replace = remplacer | remplacé | remplacement m | DEHSK
read/read/reading = lire | lu | lecture f | X; create = créer | créé | création f | DESP
show/shown/showing = afficher | affiché | affichage m | DEU; hide/hidden/hiding = masquer | masqué | masquage m | EU
select = sélectionner | sélectionné | sélection f | DEUPK; duplicate = dupliquer | dupliqué | duplication f | DES
scan/scanned/scanning = numériser | numérisé | numérisation f | XI
resize = redimensionner | redimensionné | redimensionnement m | UI; play = lire | lu | lecture f | M
translate = traduire | traduit | traduction f | X; recover = récupérer | récupéré | récupération f | DK
update = mettre à jour | mis à jour/mise à jour/mis à jour/mises à jour | mise à jour f | DG
install = installer | installé | installation f | G; uninstall = désinstaller | désinstallé | désinstallation f | G
configure = configurer | configuré | configuration f | HSGU; enable = activer | activé | activation f | SG
disable = désactiver | désactivé | désactivation f | SG; start = démarrer | démarré | démarrage m | RT
stop/stopped/stopping = arrêter | arrêté | arrêt m | RT; restart = redémarrer | redémarré | redémarrage m | RTL
connect = connecter | connecté | connexion f | HK; disconnect = déconnecter | déconnecté | déconnexion f | HKP
detect = détecter | détecté | détection f | HK; test = tester | testé | test m | HKSG
calibrate = étalonner | étalonné | étalonnage m | H; unmount = démonter | démonté | démontage m | K
eject = éjecter | éjecté | éjection f | K; lock = verrouiller | verrouillé | verrouillage m | DUS
unlock = déverrouiller | déverrouillé | déverrouillage m | DUS; minimize = réduire | réduit | réduction f | U
maximize = agrandir | agrandi | agrandissement m | U; add = ajouter | ajouté | ajout m | EPSG
insert = insérer | inséré | insertion f | EI; paste = coller | collé | collage m | E
apply = appliquer | appliqué | application f | S
reset/reset/resetting = réinitialiser | réinitialisé | réinitialisation f | SU
define = définir | défini | définition f | S; synchronize = synchroniser | synchronisé | synchronisation f | DL
analyze = analyser | analysé | analyse f | DK; cancel/canceled/canceling = annuler | annulé | annulation f | T
resume = reprendre | repris/reprise | reprise f | T; invite = inviter | invité | invitation f | P
block = bloquer | bloqué | blocage m | P; authorize = autoriser | autorisé | autorisation f | P
"""

# One entry: english = [marks]french forms TAGS. Marks: < precedes the noun, = is invariable, ! only with a
# definite article, ? may also follow "to be", ~ only follows "to be", + and - may follow it too and say that a thing is
# or is not fit for use.
_ADJECTIVES = """
new = <nouveau/nouvelle DEUHSGTPK; old = <ancien/ancienne DEUHSGTK; first = <!premier/première DEUTP
last = <!dernier/dernière DEUTP; other = <!autre DEUHSGTPK; small = <petit DEUHK; big = <gros/grosse DE
wrong = <!mauvais/mauvaise DESGAK; best = <!meilleur SG; selected = +sélectionné DEUSP
current = !actuel/actuelle DUSGTA; next = !suivant DETP; previous = !précédent DETP; empty = -vide C
hidden = -masqué DEU; temporary = ?temporaire DSA; local = ?local DLK; remote = ?distant DLK
default = !=par défaut HSGA; active = +actif/active UHSGTP; missing = -manquant DEGHK
inactive = -inactif/inactive UHSGTP; available = +disponible DHSGTPK; damaged = -endommagé DHK
invalid = -invalide DESA; valid = +valide DESA; public = +public/publique DS; private = -privé DS
shared = ?partagé DSK; encrypted = -chiffré DK; compressed = ?compressé D; automatic = ?automatique ST
manual = ?manuel/manuelle ST; main = !principal DEUHS; external = ?externe HGK; internal = ?interne HK
recent = ?récent DE; unknown = -inconnu DHSPA; read-only = -=en lecture seule DK
incomplete = -incomplet/incomplète DT; unused = ?inutilisé DEHSGK; favorite = !favori/favorite SGMP
important = ?important DEST; obsolete = -obsolète DSG; original = !=d'origine DA; visible = +visible EU
wireless = =sans fil H; standard = ?=standard SG; transparent = ?transparent UI; modified = ?modifié DES
protected = -protégé DSK; locked = -verrouillé DUS; daily = ?quotidien/quotidienne TX; French = français/française X
English = anglais/anglaise X; black = ?noir UI; white = ?blanc/blanche UI; red = ?rouge UI; green = ?vert UI
compatible = +compatible DHGK; incompatible = -incompatible DHGK; faulty = -défectueux/défectueuse HK
ready = ~+prêt DHGTK; finished = +terminé T; interrupted = -interrompu T; authorized = +autorisé P
blocked = -bloqué P; offline = -=hors ligne LP; online = +=en ligne LP; unreadable = -illisible DEK
required = ?obligatoire SE; optional = ?facultatif/facultative SE; exact = exact A; incorrect = ~incorrect A
equal to %1 = ~égal à %1/égale à %1/égaux à %1/égales à %1 A
different from %1 = ~différent de %1/différente de %1/différents de %1/différentes de %1 A
"""

_CONSTANTS = """
app: Kate; KWrite; Konsole; Dolphin; Okular; Ark; Gwenview; KMail; Kontact; Konqueror; Amarok; Akregator; Elisa
app: Digikam; Krita; Kdenlive; KOrganizer; KolourPaint; KCalc; Umbrello; Spectacle; Marble
menu: File = Fichier; Edit = Édition; View = Affichage; Tools = Outils; Settings = Configuration; Help = Aide
menu: Bookmarks = Signets; Insert = Insertion; Window = Fenêtre; Format
button: OK; Cancel = Annuler; Apply = Appliquer; Save = Enregistrer; Yes = Oui; No = Non; Close = Fermer
button: Retry = Réessayer; Continue = Continuer; Finish = Terminer; Skip = Ignorer; Browse = Parcourir; Next = Suivant
button: Advanced = Avancé
key: Enter = Entrée; Escape = Échap; Delete = Suppr; Tab; Space = Espace; F1; F2; F5; F8; F12; Ctrl+C; Ctrl+S; Ctrl+V
key: Alt+F4
number: 2; 3; 4; 5; 6; 8; 10; 12; 15; 20; 25; 50; 64; 100
how: automatically = automatiquement; manually = manuellement; permanently = définitivement; quickly = rapidement
how: immediately = immédiatement; temporarily = temporairement; completely = complètement; regularly = régulièrement
when: at startup = au démarrage; in the background = en arrière-plan; every day = chaque jour; later = plus tard
when: every hour = toutes les heures; now = maintenant; in a few minutes = dans quelques minutes; again = de nouveau
when: every week = chaque semaine; tomorrow = demain; during the night = pendant la nuit
when: after the update = après la mise à jour
reason: access denied = accès refusé; disk full = disque plein; unknown error = erreur inconnue
reason: connection lost = connexion perdue; not enough memory = mémoire insuffisante
reason: wrong password = mot de passe incorrect; unsupported format = format non pris en charge
reason: time limit exceeded = délai dépassé; name already taken = nom déjà utilisé
reason: service unavailable = service indisponible; invalid argument = argument invalide
reason: syntax error = erreur de syntaxe
"""

# The words are compared and hashed by identity (eq=False): two entries are never the same word, and drawing is faster.


@dataclass(frozen=True, eq=False)
class Noun:
    """A noun in both languages; each pair of forms is (singular, plural)."""

    english: tuple[str, str]
    french: tuple[str, str]
    is_feminine: bool
    is_aspirated: bool
    tags: str


@dataclass(frozen=True, eq=False)
class Verb:
    """A transitive verb; `done` holds the participle as (masculine, feminine, masculine plural, feminine plural)."""

    english: str
    participle: str
    gerund: str
    infinitive: str
    done: tuple[str, ...]
    action: str
    action_is_feminine: bool
    tags: str


@dataclass(frozen=True, eq=False)
class Adjective:
    """An adjective; `french` holds its four forms in the order of `Verb.done`, `marks` are explained at the table."""

    english: str
    french: tuple[str, ...]
    marks: str
    tags: str


def french_plural(singular: str) -> str:
    """Return the regular plural of a French noun or masculine adjective."""
    if singular.endswith(("s", "x", "z")):
        return singular
    if singular.endswith("al"):
        return singular[:-2] + "aux"
    return singular + ("x" if singular.endswith(("eau", "jeu", "feu")) else "s")


def french_forms(spelled: str) -> tuple[str, ...]:
    """Complete `masculine[/feminine[/plurals]]` to the four forms of a French adjective or participle."""
    forms = spelled.split("/")
    if len(forms) == 4:
        return tuple(forms)
    masculine = forms[0]
    feminine = forms[1] if len(forms) > 1 else masculine + ("" if masculine.endswith("e") else "e")
    return masculine, feminine, french_plural(masculine), french_plural(feminine)


def _english_plural(singular: str) -> str:
    if singular.endswith("y") and singular[-2] not in "aeo":
        return singular[:-1] + "ies"
    return singular + ("es" if singular.endswith(("s", "x", "ch", "sh")) else "s")


def _entries(table: str) -> list[str]:
    return [entry.strip() for line in table.strip().splitlines() for entry in line.split(";")]


def _noun(entry: str) -> Noun:
    english, right = entry.split(" = ")
    french, gender, tags = right.rsplit(" ", 2)
    singular, _, plural = english.partition("/")
    french_singular, _, plural_french = french.partition("/")
    return Noun(
        (singular, plural or _english_plural(singular)),
        (french_singular, plural_french or french_plural(french_singular)),
        gender.startswith("f"),
        gender.endswith("h"),
        tags,
    )


def _verb(entry: str) -> Verb:
    english, right = entry.split(" = ")
    infinitive, done, action, tags = right.split(" | ")
    base, *irregular = english.split("/")
    stem = base[:-1] if base.endswith("e") else base
    past = base[:-1] + "ied" if base.endswith(("py", "fy", "ly")) else stem + "ed"
    participle, gerund = irregular or (past, stem + "ing")
    noun, gender = action.rsplit(" ", 1)
    return Verb(base, participle, gerund, infinitive, french_forms(done), noun, gender == "f", tags)


def _adjective(entry: str) -> Adjective:
    english, right = entry.split(" = ", 1)
    french, tags = right.rsplit(" ", 1)
    spelled = french.lstrip("<=!?~+-")
    marks = french[: len(french) - len(spelled)]
    return Adjective(english, (spelled,) * 4 if "=" in marks else french_forms(spelled), marks, tags)


def _constants() -> dict[str, list[tuple[str, str]]]:
    constants: dict[str, list[tuple[str, str]]] = {}
    for line in _CONSTANTS.strip().splitlines():
        kind, _, entries = line.partition(": ")
        for entry in _entries(entries):
            english, _, french = entry.partition(" = ")
            constants.setdefault(kind, []).append((english, french or english))
    return constants


NOUNS = [_noun(entry) for entry in _entries(_NOUNS)]
ATTRIBUTES = [_noun(entry) for entry in _entries(_ATTRIBUTES)]
VERBS = [_verb(entry) for entry in _entries(_VERBS)]
ADJECTIVES = [_adjective(entry) for entry in _entries(_ADJECTIVES)]
CONSTANTS = _constants()
