//! Owns the `Date` of answers: clients sign by it, and hosts that join compare their clocks with it. Never taken from hyper,
//! which remembers the last one it wrote: after the clock was set back it would repeat that until its time comes again.

use std::time::SystemTime;

use http::{HeaderValue, Response, header::DATE};

/// Says in an answer what time it is here.
pub(crate) fn stamp<B>(mut response: Response<B>) -> Response<B> {
    if let Ok(value) = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now())) {
        response.headers_mut().insert(DATE, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use http::{HeaderValue, Response, header::DATE};

    #[test]
    fn says_now_whatever_was_said_before() {
        let mut response = Response::new(());
        let other = HeaderValue::from_static("Tue, 21 Nov 2045 10:00:00 GMT");
        response.headers_mut().insert(DATE, other);
        let response = super::stamp(response);
        let said = response.headers()[DATE].to_str().unwrap();
        let said = httpdate::parse_http_date(said).unwrap();
        let off = SystemTime::now().duration_since(said).unwrap();
        assert!(off < Duration::from_secs(10), "{off:?}");
    }
}
