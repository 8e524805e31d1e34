//! docs/cli.md names every command and flag of `berth`, and every exit code that `berth --help` names.

#![allow(clippy::unwrap_used)]

use std::process::Command;

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md")).unwrap()
}

/// The commands that `berth --help` lists.
fn commands(help: &str) -> Vec<&str> {
    let (_, list) = help.split_once("Commands:\n").expect("a list of commands");
    let lines = list.lines().take_while(|line| !line.is_empty());
    lines.filter_map(|line| line.split_whitespace().next()).collect()
}

/// `-f` and `--follow` of the line `  -f, --follow`.
fn flags(help: &str) -> impl Iterator<Item = &str> {
    let lines = help.lines().filter(|line| line.trim_start().starts_with('-'));
    lines
        .flat_map(|line| line.split_whitespace().take(2))
        .map(|word| word.trim_end_matches(','))
        .filter(|word| word.starts_with('-') && word.len() > 1)
}

#[test]
fn every_command_and_flag_is_in_the_page() {
    let (page, top) = (page(), help(&[]));
    let commands = commands(&top);
    assert!(
        commands.contains(&"dev") && commands.contains(&"why"),
        "{commands:?}"
    );
    for command in commands {
        assert!(page.contains(&format!("`berth {command}")), "berth {command}");
        let help = if command == "help" {
            top.clone()
        } else {
            help(&[command])
        };
        for flag in flags(&help) {
            let named = [format!("`{flag}`"), format!("`{flag} ")]
                .iter()
                .any(|form| page.contains(form));
            assert!(named, "berth {command} {flag}");
        }
    }
}

#[test]
fn every_exit_code_of_the_help_is_in_the_page() {
    let help = help(&[]);
    let (_, codes) = help.split_once("Exit codes:").expect("exit codes");
    let sentence = codes.split('.').next().unwrap();
    let codes: Vec<&str> = sentence
        .split(';')
        .filter_map(|part| part.split_whitespace().next())
        .collect();
    assert!(codes.len() >= 8, "{codes:?}");
    let page = page();
    for code in codes {
        assert!(page.contains(&format!("\n| {code} |")), "exit code {code}");
    }
}
