use std::{collections::BTreeMap, fs, net::SocketAddr, os::unix::ffi::OsStringExt as _};

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    name: String,
    listen: Option<SocketAddr>,
    count: u32,
    hosts: Vec<String>,
    reserved: Reserved,
    keys: Vec<Key>,
    attributes: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Reserved {
    cpu_units: u32,
    memory_mib: u32,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Key {
    id: String,
    secret: String,
}

/// A directory with `a.toml`, and drop-ins.
struct Ground {
    dir: tempfile::TempDir,
    environment: Vec<(OsString, OsString)>,
    sets: Vec<String>,
}

impl Ground {
    fn new(file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), file).unwrap();
        let (environment, sets) = (Vec::new(), Vec::new());
        Self {
            dir,
            environment,
            sets,
        }
    }

    fn drop_in(self, name: &str, text: &str) -> Self {
        let directory = self.dir.path().join("a.conf.d");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn set(mut self, argument: &str) -> Self {
        self.sets.push(argument.into());
        self
    }

    fn load(&self) -> Result<Loaded<Settings>, SettingsError> {
        let sources = Sources {
            file: self.dir.path().join("a.toml"),
            file_required: true,
            environment_prefix: "T",
            sets: self.sets.clone(),
            secrets: &["keys[].secret"],
        };
        sources.load_with(self.environment.clone())
    }

    fn refusal(&self) -> String {
        let text = self.load().unwrap_err().to_string();
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }

    fn origins(&self) -> String {
        let text = self.load().unwrap().show(true).unwrap();
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

#[test]
fn later_layers_win_tables_merge_and_lists_are_replaced() {
    let ground = Ground::new(
        "name = 'file'\ncount = 1\nhosts = ['a', 'b']\n[reserved]\ncpu_units = 1\nmemory_mib = 1\n",
    )
    .drop_in("10-first.toml", "count = 2\nhosts = ['c']\nname = 'first'\n")
    .drop_in("20-second.toml", "name = 'second'")
    .variable("T__RESERVED__CPU_UNITS", "3")
    .variable("T_OTHER__NAME", "not ours")
    .variable("T__COUNT", "4")
    .set("count=5");
    assert_eq!(
        ground.origins(),
        "attributes = {}  # default\n\
         count = 5  # --set\n\
         hosts = [\"c\"]  # a.conf.d/10-first.toml:2\n\
         keys = []  # default\n\
         name = \"second\"  # a.conf.d/20-second.toml:1\n\
         reserved.cpu_units = 3  # environment variable T__RESERVED__CPU_UNITS\n\
         reserved.memory_mib = 1  # a.toml:6\n"
    );
}

#[test]
fn only_toml_files_of_the_directory_are_drop_ins() {
    let ground = Ground::new("")
        .drop_in(".hidden.toml", "broken")
        .drop_in("a.toml~", "broken")
        .drop_in("a.toml.dpkg-new", "broken");
    ground.load().unwrap();
}

#[test]
fn values_of_the_environment_and_set_are_toml_or_else_text() {
    let ground = Ground::new("")
        .variable("T__HOSTS", "['x', 'y']")
        // Reads as a number, and is wanted as a string.
        .variable("T__NAME", "123456789012")
        .variable("T__LISTEN", "127.0.0.1:80")
        .variable("T__RESERVED", "{ cpu_units = 1 }")
        .variable("T__RESERVED__MEMORY_MIB", "2")
        .set("attributes.\"example.org/rack\" = b=7")
        .set("attributes.zone=1");
    let settings = ground.load().unwrap().value;
    assert_eq!(
        (settings.name.as_str(), settings.hosts.len()),
        ("123456789012", 2)
    );
    assert_eq!(settings.listen.unwrap().port(), 80);
    assert_eq!(
        (settings.reserved.cpu_units, settings.reserved.memory_mib),
        (1, 2)
    );
    assert_eq!(settings.attributes["example.org/rack"], "b=7");
    assert_eq!(settings.attributes["zone"], "1");
}

#[test]
fn what_is_wrong_is_named_with_the_place_where_it_is_written() {
    for (ground, refusal) in [
        (
            Ground::new("name = 'x'\n\nnmae = 1"),
            "a.toml:3: nmae is not a setting: known are `name`, `listen`, `count`, `hosts`, `reserved`, `keys`, `attributes`",
        ),
        (
            Ground::new("[reserved]\ncpu = 1"),
            "a.toml:2: reserved.cpu is not a setting: known are `cpu_units` or `memory_mib`",
        ),
        (
            Ground::new("").variable("T__CUONT", "1"),
            "environment variable T__CUONT: cuont is not a setting: known are",
        ),
        (
            Ground::new("").set("reserved.cpu=1"),
            "--set: reserved.cpu is not a setting: known are",
        ),
        (
            Ground::new("count = 'many'"),
            "a.toml:1: count: invalid type: string \"many\", expected u32",
        ),
        (
            Ground::new("").variable("T__COUNT", "-1"),
            "environment variable T__COUNT: count: invalid value: integer `-1`, expected u32",
        ),
        (
            Ground::new("").set("listen=here"),
            "--set: listen = \"here\": invalid socket address syntax",
        ),
        (
            Ground::new("hosts = [\n 'a',\n 1,\n]"),
            "a.toml:3: hosts[1]: invalid type: integer `1`, expected a string",
        ),
        (
            Ground::new("[[keys]]\nid = 'i'\n"),
            "keys[0].secret is not set: keys[0] at a.toml:1 needs it",
        ),
        (Ground::new("a = \n"), "a.toml:1:5: "),
        (Ground::new("name = 'a'\nname = 'b'"), "a.toml:2:1: duplicate key"),
        (Ground::new("").drop_in("b.toml", "\nx"), "a.conf.d/b.toml:2:"),
        (Ground::new("").set("count"), "it has no ="),
        (Ground::new("").set("=1"), "not a key"),
        (Ground::new("").set("a..b=1"), "not a key"),
        (Ground::new("").set("a = 1\nb=1"), "not a setting"),
        (
            Ground::new("").variable("T__A____B", "1"),
            "a part of the key is empty",
        ),
        (
            Ground::new("").set(&format!("{}=1", ["a"; 17].join("."))),
            "too many parts",
        ),
    ] {
        let text = ground.refusal();
        assert!(text.contains(refusal), "{text}\nwanted: {refusal}");
    }
}

#[test]
fn a_missing_setting_says_where_to_write_it() {
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Needs {
        control_plane: String,
    }
    let sources = Sources {
        file: "/none/agent.toml".into(),
        file_required: false,
        environment_prefix: "T",
        sets: vec![],
        secrets: &[],
    };
    let error = sources.load_with::<Needs>([]).unwrap_err().to_string();
    assert_eq!(
        error,
        "control_plane is not set: write it in /none/agent.toml, or set the environment variable T__CONTROL_PLANE"
    );
    let required = Sources {
        file_required: true,
        ..sources
    };
    let error = required.load_with::<Needs>([]).unwrap_err();
    assert!(error.to_string().contains("/none/agent.toml"), "{error}");
}

#[test]
fn secrets_are_neither_shown_nor_complained_about_in_words() {
    let keys = "[[keys]]\nid = 'i'\nsecret = 'hush'\n";
    let shown = Ground::new(keys).origins();
    assert!(
        shown.contains("(secret)") && shown.contains("\"i\"") && !shown.contains("hush"),
        "{shown}"
    );
    for ground in [
        Ground::new("[[keys]]\nid = 'i'\nsecret = ['hush']\n"),
        Ground::new("[[keys]]\nid = 'i'\nsecret = 'hush\n"),
        Ground::new("").variable("T__KEYS", "hush"),
        Ground::new("").variable("T__KEYS", "[{id = 'i', secret = {a = 'hush'}}]"),
        Ground::new("").set("keys=hush"),
        Ground::new("").set("hush"),
    ] {
        let error = ground.load().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
    }
    let loaded = Ground::new("").drop_in("k.toml", keys).load().unwrap();
    assert!(loaded.secret_files()[0].ends_with("a.conf.d/k.toml"));
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    let text = "name = 'a\"b'\nhosts = ['x']\n[[keys]]\nid = 'i'\nsecret = 's'\n[attributes]\n'a.b' = 'c'\n";
    let shown = Ground::new(text).load().unwrap().show(true).unwrap();
    let again: Settings = toml::from_str(&shown).unwrap();
    assert_eq!(
        (again.name.as_str(), again.attributes["a.b"].as_str()),
        ("a\"b", "c")
    );
}

#[test]
fn a_file_that_is_no_configuration_is_refused_with_few_words() {
    for (bytes, refusal) in [
        (b"a = 1\nb = \"\xff\"".to_vec(), "a.toml:2: not UTF-8"),
        (vec![b' '; 1 + FILE_BYTES_MAX as usize], "larger than"),
        ("a.".repeat(400_000).into_bytes(), "nested that deep"),
        ("[".repeat(900_000).into_bytes(), "a.toml:1:"),
        (
            format!("{}a = 1", "a.".repeat(KEY_DEPTH_MAX)).into_bytes(),
            "nested deeper than 16",
        ),
    ] {
        let ground = Ground::new("");
        fs::write(ground.dir.path().join("a.toml"), bytes).unwrap();
        let text = ground.refusal();
        assert!(text.contains(refusal) && text.len() < 2_000, "{text}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_settings(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let ground = Ground::new("");
        fs::write(ground.dir.path().join("a.toml"), bytes).unwrap();
        let _ = ground.load().map(|loaded| loaded.show(true).unwrap());
    }

    #[test]
    fn anything_like_toml_is_an_error_or_settings(text in "([a-c\"'=\\[\\]{}.,#0-9 \n]|name|count|keys|= ?\"x\"\n){0,60}") {
        let _ = Ground::new(&text).load().map(|loaded| loaded.show(true).unwrap());
    }

    #[test]
    fn any_environment_is_an_error_or_settings(name in "[A-Z_.]{0,20}", value in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut ground = Ground::new("");
        ground.environment.push((format!("T__{name}").into(), OsString::from_vec(value)));
        let _ = ground.load();
    }

    #[test]
    fn any_set_is_an_error_or_settings(argument in "[a-z.\"'= \\[\\]{}\\PC]{0,40}") {
        let _ = Ground::new("").set(&argument).load();
    }
}
