//! Owns what an attribute of a node may look like, whoever gives it. Never knows where attributes are kept.

/// Most attributes that can be put on one node, by PutAttributes and join tokens together.
pub const PUT_MAX: usize = 10;
/// Most attributes that a node may have of its own.
pub const OWN_MAX: usize = 128;
const NAME_CHARS_MAX: usize = 128;
const VALUE_CHARS_MAX: usize = 128;
/// A node cannot give itself one of these: constraints on them hold what the operator said.
pub const TRUSTED: &str = "trusted.";

fn plain(text: &str, more: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// What is wrong with a name, if something is.
pub fn name_problem(name: &str) -> Option<&'static str> {
    let good = !name.is_empty() && name.len() <= NAME_CHARS_MAX && plain(name, "-_./\\");
    (!good).then_some("must be 1 to 128 letters, digits and -_./\\")
}

/// What is wrong with a name that people give, if something is: some are the node's own.
pub fn given_name_problem(name: &str) -> Option<&'static str> {
    name_problem(name).or_else(|| {
        let reserved = name.starts_with("ecs.") || name.starts_with("berth.");
        reserved.then_some("the prefixes ecs. and berth. are the node's own")
    })
}

/// What is wrong with a value, if something is.
pub fn value_problem(value: &str) -> Option<&'static str> {
    let good = !value.is_empty()
        && value.len() <= VALUE_CHARS_MAX
        && plain(value, "-_./\\@: ")
        && value.trim() == value;
    (!good).then_some("must be 1 to 128 letters, digits, spaces and -_./\\@:, with no space at the ends")
}
