//! Owns how the table of fields is written: types of values, and whether a field is honoured, or why not.

/// The type of a value.
#[derive(Debug)]
pub(super) enum Shape {
    Text,
    /// A 32-bit signed integer: ECS's `Integer` and `BoxedInteger`.
    Integer,
    Flag,
    Choice(&'static Choice),
    List(&'static Shape),
    /// Text by text.
    Map,
    Object(&'static [Field]),
}

/// An enumeration: what is honoured, what ECS knows besides, and what to do about the latter.
#[derive(Debug)]
pub(super) struct Choice {
    pub honoured: &'static [&'static str],
    pub later: &'static [&'static str],
    pub never: &'static [&'static str],
    /// Completes "not supported yet" and "not supported".
    pub instead: &'static str,
}

/// Whether a field does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Support {
    Honoured,
    /// Not built yet. The text says what to do instead; empty where there is nothing to say.
    Later(&'static str),
    /// Not meant to be built. The text says why, and what to do instead.
    Never(&'static str),
}

impl Support {
    /// What is said to somebody who asks for the field; nothing if it is honoured.
    pub(super) fn refusal(self) -> Option<String> {
        match self {
            Support::Honoured => None,
            Support::Later("") => Some("not supported yet".into()),
            Support::Later(instead) => Some(format!("not supported yet; {instead}")),
            Support::Never(why) => Some(format!("not supported: {why}")),
        }
    }
}

/// One field of an object.
#[derive(Debug)]
pub(super) struct Field {
    pub name: &'static str,
    pub shape: Shape,
    pub required: bool,
    pub support: Support,
}

pub(super) const fn yes(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        required: false,
        support: Support::Honoured,
    }
}

pub(super) const fn must(name: &'static str, shape: Shape) -> Field {
    Field {
        required: true,
        ..yes(name, shape)
    }
}

/// Not yet, and what to do until then.
pub(super) const fn later_but(name: &'static str, shape: Shape, instead: &'static str) -> Field {
    Field {
        name,
        shape,
        required: false,
        support: Support::Later(instead),
    }
}

pub(super) const fn never(name: &'static str, shape: Shape, why: &'static str) -> Field {
    Field {
        name,
        shape,
        required: false,
        support: Support::Never(why),
    }
}

pub(super) const fn all(honoured: &'static [&'static str]) -> Choice {
    Choice {
        honoured,
        later: &[],
        never: &[],
        instead: "",
    }
}

pub(super) const fn list(shape: &'static Shape) -> Shape {
    Shape::List(shape)
}

pub(super) const fn object(fields: &'static [Field]) -> Shape {
    Shape::Object(fields)
}

pub(super) const fn one_of(choice: &'static Choice) -> Shape {
    Shape::Choice(choice)
}
