//! Owns reading of a request's fields: types, bounds and names are checked here, with the path in every complaint.
//! Never knows an operation.
//!
//! A field is taken out when it is read; what is left at the end is unknown and refused. `null` counts as absent.
//! Clients check neither enums nor, often, unknown names: so this does.

use serde_json::{Map, Value};

use super::error::ApiError;

/// One object of the request, with its path from the top.
#[derive(Debug)]
pub struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The request itself.
    pub fn top(value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self {
                path: String::new(),
                map,
            }),
            other => Err(ApiError::Serialization(format!(
                "request must be a JSON object, not {}",
                kind(&other)
            ))),
        }
    }

    /// What is left of the request, for those who check it as a whole.
    pub fn rest(&self) -> Value {
        Value::Object(self.map.clone())
    }

    /// The path of a field of this object, as complaints name it.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The field as it is, for those who check it themselves.
    pub fn raw(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(name, "a string", &other)),
        }
    }

    /// A string that must be there and not be empty.
    pub fn required(&mut self, name: &str) -> Result<String, ApiError> {
        match self.string(name)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(ApiError::field(self.path(name), "is required")),
        }
    }

    pub fn boolean(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.raw(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(self.mistyped(name, "a boolean", &other)),
        }
    }

    /// A whole number of `min..=max`.
    pub fn integer(&mut self, name: &str, min: i64, max: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.raw(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_i64() else {
            return Err(self.mistyped(name, "a whole number", &value));
        };
        if (min..=max).contains(&number) {
            Ok(Some(number))
        } else {
            Err(ApiError::field(
                self.path(name),
                format_args!("must be between {min} and {max}, not {number}"),
            ))
        }
    }

    /// One of `allowed`, as the model's enum names them.
    pub fn choice(&mut self, name: &str, allowed: &[&'static str]) -> Result<Option<&'static str>, ApiError> {
        self.string(name)?
            .map(|text| one_of(&self.path(name), &text, allowed))
            .transpose()
    }

    /// A list of `allowed`; empty when absent.
    pub fn choices(&mut self, name: &str, allowed: &[&'static str]) -> Result<Vec<&'static str>, ApiError> {
        let texts = self.strings(name)?.unwrap_or_default();
        let path = self.path(name);
        texts
            .iter()
            .enumerate()
            .map(|(index, text)| one_of(&format!("{path}[{index}]"), text, allowed))
            .collect()
    }

    pub fn strings(&mut self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let Some(values) = self.list(name)? else {
            return Ok(None);
        };
        let text = |(index, value)| match value {
            Value::String(text) => Ok(text),
            other => Err(self.mistyped(&format!("{name}[{index}]"), "a string", &other)),
        };
        values
            .into_iter()
            .enumerate()
            .map(text)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// A list of strings that must be there, with 1 to `max` entries.
    pub fn required_strings(&mut self, name: &str, max: usize) -> Result<Vec<String>, ApiError> {
        let texts = self.strings(name)?.unwrap_or_default();
        match texts.len() {
            0 => Err(ApiError::field(self.path(name), "is required")),
            count if count > max => Err(ApiError::field(
                self.path(name),
                format_args!("can have at most {max} entries, not {count}"),
            )),
            _ => Ok(texts),
        }
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                path: self.path(name),
                map,
            })),
            Some(other) => Err(self.mistyped(name, "an object", &other)),
        }
    }

    /// A list of objects, at most `max`; empty when absent.
    pub fn objects(&mut self, name: &str, max: usize) -> Result<Vec<Self>, ApiError> {
        let values = self.list(name)?.unwrap_or_default();
        if values.len() > max {
            let problem = format!("can have at most {max} entries, not {}", values.len());
            return Err(ApiError::field(self.path(name), problem));
        }
        let object = |(index, value)| match value {
            Value::Object(map) => Ok(Self {
                path: format!("{}[{index}]", self.path(name)),
                map,
            }),
            other => Err(self.mistyped(&format!("{name}[{index}]"), "an object", &other)),
        };
        values.into_iter().enumerate().map(object).collect()
    }

    /// Refuses a field that this endpoint cannot honour, unless it is absent or empty.
    pub fn unsupported(&mut self, name: &str) -> Result<(), ApiError> {
        match self.raw(name) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Array(list)) if list.is_empty() => Ok(()),
            Some(Value::Object(map)) if map.is_empty() => Ok(()),
            Some(_) => Err(ApiError::field(self.path(name), "not supported yet")),
        }
    }

    /// Refuses what nobody took.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(ApiError::field(self.path(name), "unknown field")),
            None => Ok(()),
        }
    }

    fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.mistyped(name, "a list", &other)),
        }
    }

    fn mistyped(&self, name: &str, wanted: &str, got: &Value) -> ApiError {
        ApiError::field(
            self.path(name),
            format_args!("must be {wanted}, not {}", kind(got)),
        )
    }
}

fn one_of(path: &str, text: &str, allowed: &[&'static str]) -> Result<&'static str, ApiError> {
    allowed.iter().copied().find(|name| *name == text).ok_or_else(|| {
        ApiError::field(
            path,
            format_args!("'{text}' is not a valid value: use {}", allowed.join(", ")),
        )
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(result: Result<impl std::fmt::Debug, ApiError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn complaints_name_the_path_and_what_is_wrong() {
        let mut top = Fields::top(json!({
            "cluster": 7, "count": 11, "mode": "BOGUS", "names": ["a", 1], "half": 1.5, "flag": "true",
            "inner": {"deep": [{"x": "1", "odd": 2}]},
        }))
        .unwrap();
        assert_eq!(
            message(top.string("cluster")),
            "cluster: must be a string, not a number"
        );
        assert_eq!(
            message(top.integer("count", 1, 10)),
            "count: must be between 1 and 10, not 11"
        );
        assert_eq!(
            message(top.choice("mode", &["A", "B"])),
            "mode: 'BOGUS' is not a valid value: use A, B"
        );
        assert_eq!(
            message(top.strings("names")),
            "names[1]: must be a string, not a number"
        );
        assert_eq!(
            message(top.integer("half", 0, 9)),
            "half: must be a whole number, not a number"
        );
        assert_eq!(
            message(top.boolean("flag")),
            "flag: must be a boolean, not a string"
        );
        let mut inner = top.object("inner").unwrap().unwrap();
        let mut deep = inner.objects("deep", 3).unwrap();
        deep[0].string("x").unwrap();
        assert_eq!(
            message(deep.remove(0).finish()),
            "inner.deep[0].odd: unknown field"
        );
        assert_eq!(message(top.required("absent")), "absent: is required");
    }

    #[test]
    fn null_is_absent_and_empty_is_not_unsupported() {
        let mut top = Fields::top(json!({"a": null, "b": [], "c": {}, "d": false, "e": [1]})).unwrap();
        assert_eq!(top.string("a").unwrap(), None);
        for name in ["b", "c", "d"] {
            top.unsupported(name).unwrap();
        }
        assert_eq!(message(top.unsupported("e")), "e: not supported yet");
        top.finish().unwrap();
    }
}
