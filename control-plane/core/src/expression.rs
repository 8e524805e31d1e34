//! Owns the cluster query language of ECS: the expressions of `memberOf` constraints and of
//! ListContainerInstances' filter. Parses once, evaluates often; never panics, whatever the text.
//!
//! ```text
//! expression = all { ("or" | "||") all }
//! all        = unary { ("and" | "&&") unary }
//! unary      = ("not" | "!") unary | "(" expression ")" | test
//! test       = subject operator [argument]
//! subject    = "attribute:" NAME | "task:group" | "agentConnected" | "agentVersion" | "runningTasksCount"
//!            | "registeredAt" | "containerInstanceId" | "ec2InstanceId"
//! operator   = "==" "equals"  "!=" "not_equals"  ">" "greater_than"  ">=" "greater_than_equal"
//!              "<" "less_than"  "<=" "less_than_equal"  "exists"  "!exists" "not_exists"
//!              "in"  "!in" "not_in"  "=~" "matches"  "!~" "not_matches"
//! argument   = VALUE | "[" VALUE { "," VALUE } "]"
//! ```
//!
//! Source: "Create expressions to define container instances for Amazon ECS tasks", ECS developer guide.
//! A pattern must match the whole value, as Java's `matches` does.

mod date;
mod eval;
mod parse;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;

/// Longest expression, in characters.
pub const EXPRESSION_CHARS_MAX: usize = 2_000;
/// Deepest nesting of parentheses and negations.
pub const DEPTH_MAX: usize = 32;
/// Most values in one `in [...]`.
pub const VALUES_MAX: usize = 100;
/// Memory one compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 256 * 1024;

/// A parsed expression. Two are equal when they were written alike.
#[derive(Clone)]
pub struct Expression {
    source: String,
    root: Node,
}

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct ExpressionError {
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
}

/// What an expression is asked about: one node and what runs there.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub node_id: &'a str,
    /// An attribute may have no value; it then exists and equals nothing.
    pub attributes: &'a BTreeMap<String, Option<String>>,
    /// Groups with at least one task on the node that is not being stopped, with how many.
    pub groups: &'a BTreeMap<String, u32>,
    pub running_tasks: u32,
    pub connected: bool,
    pub agent_version: &'a str,
    pub registered_at_ms: i64,
}

impl Expression {
    /// Parses an expression; the error names the column.
    pub fn parse(source: &str) -> Result<Self, ExpressionError> {
        let root = parse::parse(source)?;
        Ok(Self {
            source: source.to_string(),
            root,
        })
    }

    /// Whether the node satisfies the expression. A test of something the node lacks is false, and its
    /// negated form (`!=`, `not_in`, `!~`) true.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        eval::holds(&self.root, subject)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Expression {}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.source)
    }
}

#[derive(Clone)]
enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Test(Field, Test),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Attribute(String),
    Group,
    AgentConnected,
    AgentVersion,
    RunningTasks,
    RegisteredAt,
    NodeId,
}

#[derive(Clone)]
enum Test {
    Exists,
    /// Equal to one of these.
    OneOf(Vec<String>),
    Matches(Regex),
    Order(Order, Bound),
    /// `!=`, `!exists`, `not_in`, `!~`.
    Not(Box<Test>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

impl Order {
    fn accepts(self, ordering: std::cmp::Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Equal => ordering.is_eq(),
            Self::GreaterOrEqual => ordering.is_ge(),
            Self::Greater => ordering.is_gt(),
        }
    }
}

/// What a value is ordered against.
#[derive(Clone, Debug)]
enum Bound {
    Number(f64),
    Version(Vec<u64>),
    /// Milliseconds since the Unix epoch, from and (excluded) to: a date without time is a whole day.
    Time {
        from_ms: i64,
        to_ms: i64,
    },
}
