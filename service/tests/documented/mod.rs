//! What docs/configuration.md and a packaged file say of a daemon's keys; for the daemons' own tests, which know the keys.

use std::collections::{BTreeMap, BTreeSet};

/// Key and default, as the page's table has them.
pub fn in_page(section: &str) -> BTreeMap<String, String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, rest) = page
        .split_once(&format!("\n## {section}\n"))
        .expect("the section");
    let section = rest.split("\n## ").next().unwrap();
    let (_, table) = section
        .split_once("\n| key | type | default |")
        .expect("the table of keys");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        (cells[1].to_owned(), cells[3].to_owned())
    })
    .collect()
}

/// The packaged file: keys at their defaults (`#key = value`) with the value, and examples (`# key = value`). Those below
/// `# [[table]]` are keys of its entries.
fn in_file(name: &str) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let path = format!("{}/../packaging/config/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let (mut defaults, mut examples, mut table) = (BTreeMap::new(), BTreeSet::new(), String::new());
    let is_key = |key: &str| {
        !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b"_.0123456789".contains(&b))
    };
    for line in text.lines() {
        if let Some(inner) = line.strip_prefix("# [[").and_then(|line| line.strip_suffix("]]")) {
            table = format!("{inner}[].");
        }
        let Some((key, value)) = line.split_once(" = ") else {
            continue;
        };
        if let Some(key) = key.strip_prefix("# ").filter(|key| is_key(key)) {
            examples.insert(format!("{table}{key}"));
        } else if let Some(key) = key.strip_prefix('#').filter(|key| is_key(key)) {
            defaults.insert(key.to_owned(), value.to_owned());
        }
    }
    (defaults, examples)
}

/// The packaged file with every setting uncommented, examples left out.
pub fn uncommented(name: &str) -> String {
    let path = format!("{}/../packaging/config/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => format!("{setting}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// The packaged file has these keys, those with a default at it, and no other.
pub fn assert_packaged(name: &str, known: &BTreeMap<String, String>) {
    let (defaults, examples) = in_file(name);
    for (key, default) in known {
        if matches!(default.as_str(), "required" | "none") {
            assert!(
                examples.contains(key),
                "# {key} = … is missing in packaging/config/{name}"
            );
        } else {
            assert_eq!(
                defaults.get(key),
                Some(default),
                "{key} in packaging/config/{name}"
            );
        }
    }
    for key in defaults.keys().chain(&examples) {
        assert!(
            known.contains_key(key),
            "{key} in packaging/config/{name} is no key"
        );
    }
}
