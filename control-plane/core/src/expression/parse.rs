//! Owns the grammar. Never evaluates.

use regex::RegexBuilder;

use super::scan::Scanner;
use super::{
    Bound, DEPTH_MAX, EXPRESSION_CHARS_MAX, ExpressionError, Field, Node, Order, PATTERN_BYTES_MAX, Test,
    VALUES_MAX, date,
};

/// What an operator does with its argument.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operator {
    Exists,
    Equals,
    In,
    Matches,
    Compare(Order),
}

/// Longest sign first, so that `>` does not hide `>=`; a sign that is a prefix of none stands anywhere.
const SIGNS: &[(&str, Operator, bool)] = &[
    ("==", Operator::Equals, false),
    ("!=", Operator::Equals, true),
    ("=~", Operator::Matches, false),
    ("!~", Operator::Matches, true),
    (">=", Operator::Compare(Order::GreaterOrEqual), false),
    ("<=", Operator::Compare(Order::LessOrEqual), false),
    (">", Operator::Compare(Order::Greater), false),
    ("<", Operator::Compare(Order::Less), false),
    ("!exists", Operator::Exists, true),
    ("!in", Operator::In, true),
];

const WORDS: &[(&str, Operator, bool)] = &[
    ("exists", Operator::Exists, false),
    ("not_exists", Operator::Exists, true),
    ("equals", Operator::Equals, false),
    ("not_equals", Operator::Equals, true),
    ("in", Operator::In, false),
    ("not_in", Operator::In, true),
    ("matches", Operator::Matches, false),
    ("not_matches", Operator::Matches, true),
    ("greater_than", Operator::Compare(Order::Greater), false),
    (
        "greater_than_equal",
        Operator::Compare(Order::GreaterOrEqual),
        false,
    ),
    ("less_than", Operator::Compare(Order::Less), false),
    ("less_than_equal", Operator::Compare(Order::LessOrEqual), false),
];

const SUBJECTS: &str = "attribute:NAME, task:group, agentConnected, agentVersion, runningTasksCount, registeredAt, \
                        containerInstanceId or ec2InstanceId";

pub(super) fn parse(source: &str) -> Result<Node, ExpressionError> {
    let chars = source.chars().count();
    if chars > EXPRESSION_CHARS_MAX {
        let message = format!("the expression has {chars} characters, the limit is {EXPRESSION_CHARS_MAX}");
        return Err(ExpressionError {
            column: EXPRESSION_CHARS_MAX + 1,
            message,
        });
    }
    let mut text = Scanner::new(source);
    let root = any(&mut text, 0)?;
    if !text.at_end() {
        let found = text.next_few();
        return Err(text.error(format!("expected `and`, `or` or the end, found {found}")));
    }
    Ok(root)
}

fn any(text: &mut Scanner<'_>, depth: usize) -> Result<Node, ExpressionError> {
    let mut nodes = vec![all(text, depth)?];
    while text.sign("||") || text.word("or") {
        nodes.push(all(text, depth)?);
    }
    Ok(if nodes.len() == 1 {
        nodes.remove(0)
    } else {
        Node::Any(nodes)
    })
}

fn all(text: &mut Scanner<'_>, depth: usize) -> Result<Node, ExpressionError> {
    let mut nodes = vec![unary(text, depth)?];
    while text.sign("&&") || text.word("and") {
        nodes.push(unary(text, depth)?);
    }
    Ok(if nodes.len() == 1 {
        nodes.remove(0)
    } else {
        Node::All(nodes)
    })
}

fn unary(text: &mut Scanner<'_>, depth: usize) -> Result<Node, ExpressionError> {
    if depth == DEPTH_MAX {
        return Err(text.error(format!("nested deeper than {DEPTH_MAX}")));
    }
    if text.sign("!") || text.word("not") {
        return Ok(Node::Not(Box::new(unary(text, depth + 1)?)));
    }
    if text.sign("(") {
        let inner = any(text, depth + 1)?;
        if text.sign(")") {
            return Ok(inner);
        }
        let found = text.next_few();
        return Err(text.error(format!("expected `)`, found {found}")));
    }
    test(text)
}

fn test(text: &mut Scanner<'_>) -> Result<Node, ExpressionError> {
    let field = field(text)?;
    let at = text.mark();
    let (operator, negated) = operator(text)?;
    if !allowed(&field, operator) {
        return Err(text.error_at(at, "this subject does not take this operator"));
    }
    let test = argument(text, &field, operator)?;
    let test = if negated { Test::Not(Box::new(test)) } else { test };
    Ok(Node::Test(field, test))
}

fn field(text: &mut Scanner<'_>) -> Result<Field, ExpressionError> {
    let at = text.mark();
    let found = text.next_few();
    let name = text.name();
    if let Some(attribute) = name.strip_prefix("attribute:") {
        return match attribute {
            "" => Err(text.error("expected an attribute's name after `attribute:`")),
            name => Ok(Field::Attribute(name.to_string())),
        };
    }
    match name {
        "task:group" => Ok(Field::Group),
        "agentConnected" => Ok(Field::AgentConnected),
        "agentVersion" => Ok(Field::AgentVersion),
        "runningTasksCount" => Ok(Field::RunningTasks),
        "registeredAt" => Ok(Field::RegisteredAt),
        // A node has one id: there need be no EC2 under it.
        "containerInstanceId" | "ec2InstanceId" => Ok(Field::NodeId),
        _ => Err(text.error_at(at, format!("expected {SUBJECTS}, found {found}"))),
    }
}

fn operator(text: &mut Scanner<'_>) -> Result<(Operator, bool), ExpressionError> {
    for (sign, operator, negated) in SIGNS {
        if text.sign(sign) {
            return Ok((*operator, *negated));
        }
    }
    for (word, operator, negated) in WORDS {
        if text.word(word) {
            return Ok((*operator, *negated));
        }
    }
    let found = text.next_few();
    Err(text.error(format!("expected an operator such as == or in, found {found}")))
}

/// Which operators mean something for which subject: numbers and times have an order, the rest has patterns.
fn allowed(field: &Field, operator: Operator) -> bool {
    use Operator as Op;
    match (field, operator) {
        (Field::Attribute(_), _) => true,
        (_, Op::Exists) => false,
        (Field::RunningTasks, Op::Matches) | (Field::RegisteredAt, Op::Matches | Op::In) => false,
        (Field::Group | Field::AgentConnected | Field::NodeId, Op::Compare(_)) => false,
        _ => true,
    }
}

fn argument(text: &mut Scanner<'_>, field: &Field, operator: Operator) -> Result<Test, ExpressionError> {
    match operator {
        Operator::Exists => Ok(Test::Exists),
        Operator::In => list(text).map(Test::OneOf),
        Operator::Matches => pattern(text),
        Operator::Equals if *field == Field::RegisteredAt => {
            Ok(Test::Order(Order::Equal, bound(text, field)?))
        }
        Operator::Equals => Ok(Test::OneOf(vec![text.value()?])),
        Operator::Compare(order) => Ok(Test::Order(order, bound(text, field)?)),
    }
}

fn list(text: &mut Scanner<'_>) -> Result<Vec<String>, ExpressionError> {
    if !text.sign("[") {
        let found = text.next_few();
        return Err(text.error(format!("expected `[` and a list of values, found {found}")));
    }
    let mut values = vec![text.value()?];
    while text.sign(",") {
        if values.len() == VALUES_MAX {
            return Err(text.error(format!("more than {VALUES_MAX} values")));
        }
        values.push(text.value()?);
    }
    if text.sign("]") {
        return Ok(values);
    }
    let found = text.next_few();
    Err(text.error(format!("expected `,` or `]`, found {found}")))
}

fn pattern(text: &mut Scanner<'_>) -> Result<Test, ExpressionError> {
    let at = text.mark();
    let pattern = text.pattern()?;
    // The pattern must be sound by itself: `a)(b` would be once it is wrapped.
    let compile = |source: &str| RegexBuilder::new(source).size_limit(PATTERN_BYTES_MAX).build();
    compile(&pattern)
        .and_then(|_| compile(&format!("^(?:{pattern})$")))
        .map(Test::Matches)
        .map_err(|error| text.error_at(at, format!("not a usable pattern: {}", last_line(&error))))
}

/// The regex crate draws its errors over several lines; the last one says what is wrong.
fn last_line(error: &regex::Error) -> String {
    let drawn = error.to_string();
    drawn
        .lines()
        .last()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .to_string()
}

fn bound(text: &mut Scanner<'_>, field: &Field) -> Result<Bound, ExpressionError> {
    let at = text.mark();
    let value = text.value()?;
    let (bound, expected) = match field {
        Field::RegisteredAt => {
            let span = date::parse_span(&value);
            (
                span.map(|(from_ms, to_ms)| Bound::Time { from_ms, to_ms }),
                "a date such as 2018-06-18T22:28:28Z",
            )
        }
        Field::AgentVersion => (version(&value).map(Bound::Version), "a version such as 1.20.3"),
        _ => (number(&value).map(Bound::Number), "a number"),
    };
    bound.ok_or_else(|| text.error_at(at, format!("expected {expected}, found {value:?}")))
}

/// A finite decimal number; `inf` and `NaN` have no place in an order.
pub(super) fn number(value: &str) -> Option<f64> {
    value.parse().ok().filter(|n: &f64| n.is_finite())
}

/// The numbers of a dotted version; what follows a `-` or `+` does not count.
pub(super) fn version(value: &str) -> Option<Vec<u64>> {
    let core = value.trim_start_matches('v').split(['-', '+']).next()?;
    core.split('.').map(|part| part.parse().ok()).collect()
}
