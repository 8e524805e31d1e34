//! Owns the cursor over an expression's text: words, signs, values, columns. Never knows the grammar.

use super::ExpressionError;

pub(super) struct Scanner<'a> {
    text: &'a str,
    /// Byte offset, always at a character boundary.
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub(super) fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// After white space: whether nothing is left.
    pub(super) fn at_end(&mut self) -> bool {
        self.skip_space();
        self.rest().is_empty()
    }

    /// Takes a sign such as `&&` if it is next.
    pub(super) fn sign(&mut self, sign: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(sign);
        self.at += if found { sign.len() } else { 0 };
        found
    }

    /// Takes a word such as `and` if it is next and ends there.
    pub(super) fn word(&mut self, word: &str) -> bool {
        self.skip_space();
        let Some(after) = self.rest().strip_prefix(word) else {
            return false;
        };
        let ends = after.chars().next().is_none_or(|c| !is_name_char(c));
        self.at += if ends { word.len() } else { 0 };
        ends
    }

    /// Takes a subject or operator word: letters, digits and `_ - . : /`. Empty if none is next.
    pub(super) fn name(&mut self) -> &'a str {
        self.skip_space();
        self.take_while(is_name_char)
    }

    /// Takes one value: quoted, or up to white space, a comma, a bracket or a boolean sign.
    pub(super) fn value(&mut self) -> Result<String, ExpressionError> {
        self.skip_space();
        if let Some(quoted) = self.quoted()? {
            return Ok(quoted);
        }
        let rest = self.rest();
        let end = rest.char_indices().find(|(at, c)| {
            c.is_whitespace()
                || "()[],\"'".contains(*c)
                || rest[*at..].starts_with("&&")
                || rest[*at..].starts_with("||")
        });
        self.non_empty(end.map_or(rest.len(), |(at, _)| at), "a value")
    }

    /// Takes one pattern: quoted, or up to white space or a closing parenthesis that the pattern did not open.
    pub(super) fn pattern(&mut self) -> Result<String, ExpressionError> {
        self.skip_space();
        if let Some(quoted) = self.quoted()? {
            return Ok(quoted);
        }
        let (mut open, mut escaped) = (0_usize, false);
        let mut end = self.rest().len();
        for (at, c) in self.rest().char_indices() {
            match c {
                _ if c.is_whitespace() || (c == ')' && open == 0 && !escaped) => {
                    end = at;
                    break;
                }
                '(' if !escaped => open += 1,
                ')' if !escaped => open -= 1,
                _ => {}
            }
            escaped = c == '\\' && !escaped;
        }
        self.non_empty(end, "a pattern")
    }

    /// An error at the next character that is not white space.
    pub(super) fn error(&mut self, message: impl Into<String>) -> ExpressionError {
        self.skip_space();
        let at = self.at;
        self.error_at(at, message)
    }

    /// Where the next thing that is not white space begins, for [`Scanner::error_at`].
    pub(super) fn mark(&mut self) -> usize {
        self.skip_space();
        self.at
    }

    pub(super) fn error_at(&self, at: usize, message: impl Into<String>) -> ExpressionError {
        let column = self.text[..at].chars().count() + 1;
        ExpressionError {
            column,
            message: message.into(),
        }
    }

    /// The next few characters, for error messages.
    pub(super) fn next_few(&mut self) -> String {
        self.skip_space();
        let few: String = self
            .rest()
            .chars()
            .take(20)
            .take_while(|c| !c.is_whitespace())
            .collect();
        if few.is_empty() {
            "the end".into()
        } else {
            format!("{few:?}")
        }
    }

    fn quoted(&mut self) -> Result<Option<String>, ExpressionError> {
        let Some(quote) = self.rest().chars().next().filter(|c| *c == '"' || *c == '\'') else {
            return Ok(None);
        };
        let inside = &self.rest()[1..];
        let Some(end) = inside.find(quote) else {
            return Err(self.error(format!("the quote {quote} is never closed")));
        };
        self.at += end + 2;
        Ok(Some(inside[..end].to_string()))
    }

    fn non_empty(&mut self, len: usize, what: &str) -> Result<String, ExpressionError> {
        if len == 0 {
            let found = self.next_few();
            return Err(self.error(format!("expected {what}, found {found}")));
        }
        let taken = self.rest()[..len].to_string();
        self.at += len;
        Ok(taken)
    }

    fn take_while(&mut self, accept: fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.:/\\".contains(c)
}
