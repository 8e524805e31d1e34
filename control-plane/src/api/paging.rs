//! Owns paging of List* calls: bounds, opaque tokens, and walking the store. Never keeps a cursor: a token holds the
//! last key given out, so it outlives restarts.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{context::Api, error::ApiError, fields::Fields};
use crate::store::{PAGE_ENTRIES_MAX, typed};

/// Most items of one page, and how many there are unless asked otherwise.
pub(super) const PAGE_ITEMS_MAX: usize = 100;

/// Where a listing goes on, and how far.
#[derive(Debug)]
pub(super) struct Paging {
    operation: &'static str,
    max: usize,
    after: Option<String>,
}

/// One page. The token is there when more follows.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub items: Vec<T>,
    pub next_token: Option<String>,
}

impl Paging {
    /// Takes `nextToken` and `maxResults`. A token is good for the operation that gave it.
    pub fn take(fields: &mut Fields, operation: &'static str) -> Result<Self, ApiError> {
        let max = fields.integer("maxResults", 1, PAGE_ITEMS_MAX as i64)?;
        let max = max
            .and_then(|max| usize::try_from(max).ok())
            .unwrap_or(PAGE_ITEMS_MAX);
        let after = match fields.string("nextToken")?.filter(|token| !token.is_empty()) {
            None => None,
            Some(token) => Some(decode(&token, operation).ok_or_else(|| {
                ApiError::field(
                    "nextToken",
                    format_args!("is not a token that {operation} gave out"),
                )
            })?),
        };
        Ok(Self {
            operation,
            max,
            after,
        })
    }

    /// Cuts a page out of `items`, which are (key, item) in the order of the listing.
    pub fn cut<T>(&self, items: impl IntoIterator<Item = (String, T)>, descending: bool) -> Page<T> {
        let after = self.after.as_deref();
        let beyond = |key: &str| after.is_none_or(|after| if descending { key < after } else { key > after });
        let mut rest = items.into_iter().filter(|(key, _)| beyond(key));
        let (mut items, mut last) = (Vec::new(), String::new());
        for (key, item) in rest.by_ref().take(self.max) {
            items.push(item);
            last = key;
        }
        let next_token = rest.next().map(|_| encode(self.operation, &last));
        Page { items, next_token }
    }

    /// Walks the records under `prefix` and keeps what `keep` makes an item of.
    pub async fn walk<T: DeserializeOwned, R>(
        &self,
        api: &Api,
        prefix: &str,
        mut keep: impl FnMut(T) -> Result<Option<R>, ApiError>,
    ) -> Result<Page<R>, ApiError> {
        let (mut items, mut last) = (Vec::new(), String::new());
        let mut after = self.after.clone().filter(|after| after.starts_with(prefix));
        loop {
            let page = api
                .store
                .range(prefix, after.as_deref(), PAGE_ENTRIES_MAX)
                .await?;
            for entry in page.entries {
                let record = typed::decode::<T>(entry)?;
                after = Some(record.key.clone());
                let Some(item) = keep(record.value)? else { continue };
                if items.len() == self.max {
                    return Ok(Page {
                        items,
                        next_token: Some(encode(self.operation, &last)),
                    });
                }
                items.push(item);
                last = record.key;
            }
            if !page.more {
                return Ok(Page {
                    items,
                    next_token: None,
                });
            }
        }
    }
}

impl<T: Into<Value>> Page<T> {
    /// As a response with the items under `name`.
    pub fn respond(self, name: &str) -> Value {
        let items: Vec<Value> = self.items.into_iter().map(Into::into).collect();
        let mut body = json!({name: items});
        if let Some(token) = self.next_token {
            body["nextToken"] = token.into();
        }
        body
    }
}

fn encode(operation: &str, last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{operation}\n{last}"))
}

fn decode(token: &str, operation: &str) -> Option<String> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (of, last) = text.split_once('\n')?;
    (of == operation).then(|| last.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paging(max: usize, after: Option<String>) -> Paging {
        Paging {
            operation: "ListThings",
            max,
            after,
        }
    }

    fn items(keys: &[&str]) -> Vec<(String, String)> {
        keys.iter()
            .map(|key| ((*key).to_owned(), (*key).to_owned()))
            .collect()
    }

    #[test]
    fn pages_meet_without_gap_or_overlap_in_both_directions() {
        for (keys, descending) in [(["a", "b", "c", "d"], false), (["d", "c", "b", "a"], true)] {
            let first = paging(3, None).cut(items(&keys), descending);
            assert_eq!(first.items, keys[..3]);
            let after = decode(&first.next_token.unwrap(), "ListThings").unwrap();
            let second = paging(3, Some(after)).cut(items(&keys), descending);
            assert_eq!(second.items, keys[3..]);
            assert_eq!(second.next_token, None);
        }
    }

    #[test]
    fn no_token_when_the_last_page_is_exactly_full() {
        assert_eq!(paging(2, None).cut(items(&["a", "b"]), false).next_token, None);
    }

    #[test]
    fn tokens_of_other_operations_and_garbage_are_refused() {
        let token = encode("ListThings", "/a");
        for (operation, token) in [
            ("ListOthers", token.as_str()),
            ("ListThings", "!!"),
            ("ListThings", "AAAA"),
        ] {
            let mut fields = Fields::top(json!({"nextToken": token})).unwrap();
            let error = Paging::take(&mut fields, operation).unwrap_err();
            assert_eq!(error.code(), "InvalidParameterException", "{error}");
        }
    }
}
