use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use time::{OffsetDateTime, macros::datetime};

use super::{AuthError, Claim, Signed};

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const AT: OffsetDateTime = datetime!(2015-08-30 12:36:00 UTC);

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            name.parse::<HeaderName>().unwrap(),
            value.parse::<HeaderValue>().unwrap(),
        );
    }
    headers
}

fn authorization(signed_headers: &str, signature: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
         SignedHeaders={signed_headers}, Signature={signature}"
    )
}

/// A case of AWS's published Signature Version 4 test suite.
struct Vector {
    name: &'static str,
    method: &'static str,
    query: &'static str,
    headers: &'static [(&'static str, &'static str)],
    signed_headers: &'static str,
    body: &'static str,
    signature: &'static str,
}

const EMPTY: Vector = Vector {
    name: "",
    method: "GET",
    query: "",
    headers: &[],
    signed_headers: "host;x-amz-date",
    body: "",
    signature: "",
};

const VECTORS: [Vector; 11] = [
    Vector {
        name: "get-vanilla",
        signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ..EMPTY
    },
    Vector {
        name: "post-vanilla",
        method: "POST",
        signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ..EMPTY
    },
    Vector {
        name: "post-vanilla-query",
        method: "POST",
        query: "Param1=value1",
        signature: "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
        ..EMPTY
    },
    Vector {
        name: "get-vanilla-query-order-key-case",
        query: "Param2=value2&Param1=value1",
        signature: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ..EMPTY
    },
    Vector {
        name: "get-vanilla-query-order-encoded",
        query: "Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
        signature: "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
        ..EMPTY
    },
    Vector {
        name: "get-vanilla-utf8-query",
        query: "%E1%88%B4=bar",
        signature: "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
        ..EMPTY
    },
    Vector {
        name: "get-header-value-order",
        headers: &[
            ("My-Header1", "value4"),
            ("My-Header1", "value1"),
            ("My-Header1", "value3"),
            ("My-Header1", "value2"),
        ],
        signed_headers: "host;my-header1;x-amz-date",
        signature: "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
        ..EMPTY
    },
    Vector {
        name: "get-header-key-duplicate",
        headers: &[
            ("My-Header1", "value2"),
            ("My-Header1", "value2"),
            ("My-Header1", "value1"),
        ],
        signed_headers: "host;my-header1;x-amz-date",
        signature: "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
        ..EMPTY
    },
    Vector {
        name: "get-header-value-trim",
        headers: &[("My-Header1", " value1"), ("My-Header2", " \"a   b   c\"")],
        signed_headers: "host;my-header1;my-header2;x-amz-date",
        signature: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ..EMPTY
    },
    Vector {
        name: "post-header-key-sort",
        method: "POST",
        headers: &[("My-Header1", "value1")],
        signed_headers: "host;my-header1;x-amz-date",
        signature: "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
        ..EMPTY
    },
    Vector {
        name: "post-x-www-form-urlencoded",
        method: "POST",
        headers: &[
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", "13"),
            (
                "x-amz-content-sha256",
                "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
            ),
        ],
        signed_headers: "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
        body: "Param1=value1",
        signature: "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
        ..EMPTY
    },
];

#[test]
fn accepts_the_published_vectors_and_nothing_beside_them() {
    for vector in VECTORS {
        let mut fields = headers(vector.headers);
        fields.insert("host", HeaderValue::from_static("example.amazonaws.com"));
        fields.insert("x-amz-date", HeaderValue::from_static("20150830T123600Z"));
        let value = authorization(vector.signed_headers, vector.signature);
        fields.insert("authorization", value.parse().unwrap());
        let claim = Claim::parse(&fields).unwrap();
        let signed = Signed {
            method: vector.method,
            path: "/",
            query: vector.query,
            headers: &fields,
            body: vector.body.as_bytes(),
        };
        claim
            .verify(signed, SECRET)
            .unwrap_or_else(|error| panic!("{}: {error}", vector.name));
        assert!(claim.verify(signed, "another secret").is_err(), "{}", vector.name);
        assert!(
            claim
                .verify(
                    Signed {
                        body: b"altered",
                        ..signed
                    },
                    SECRET
                )
                .is_err(),
            "{}",
            vector.name
        );
        assert!(
            claim
                .verify(
                    Signed {
                        method: "PUT",
                        ..signed
                    },
                    SECRET
                )
                .is_err(),
            "{}",
            vector.name
        );
        assert!(
            claim
                .verify(
                    Signed {
                        query: "x=1",
                        ..signed
                    },
                    SECRET
                )
                .is_err(),
            "{}",
            vector.name
        );
    }
}

/// Signs as the AWS SDK for Rust does.
fn sdk_signed(body: &[u8], at: SystemTime) -> HeaderMap {
    let identity = Credentials::new("AKIDEXAMPLE", SECRET, None, None, "test").into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region("eu-central-1")
        .name("ecs")
        .time(at)
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let mut fields = headers(&[
        ("host", "127.0.0.1:8080"),
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", "AmazonEC2ContainerServiceV20141113.ListClusters"),
        ("user-agent", "not  signed"),
    ]);
    let listed: Vec<(String, String)> = fields
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let request = SignableRequest::new(
        "POST",
        "http://127.0.0.1:8080/",
        listed.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        SignableBody::Bytes(body),
    )
    .unwrap();
    let (instructions, _) = sign(request, &params).unwrap().into_parts();
    for (name, value) in instructions.headers() {
        fields.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    fields
}

fn signed<'a>(headers: &'a HeaderMap, body: &'a [u8]) -> Signed<'a> {
    Signed {
        method: "POST",
        path: "/",
        query: "",
        headers,
        body,
    }
}

#[test]
fn accepts_what_the_aws_sdk_signs() {
    let fields = sdk_signed(b"{\"maxResults\":3}", SystemTime::now());
    let claim = Claim::parse(&fields).unwrap();
    assert_eq!(
        (claim.region.as_str(), claim.service.as_str()),
        ("eu-central-1", "ecs")
    );
    claim
        .verify(signed(&fields, b"{\"maxResults\":3}"), SECRET)
        .unwrap();
    claim
        .check_time(OffsetDateTime::now_utc(), Duration::from_secs(300))
        .unwrap();
    let altered = claim
        .verify(signed(&fields, b"{\"maxResults\":4}"), SECRET)
        .unwrap_err();
    assert!(matches!(altered, AuthError::Mismatch { .. }));
    let mut target = fields.clone();
    target.insert(
        "x-amz-target",
        HeaderValue::from_static("AmazonEC2ContainerServiceV20141113.DeleteCluster"),
    );
    assert!(
        claim
            .verify(signed(&target, b"{\"maxResults\":3}"), SECRET)
            .is_err()
    );
}

#[test]
fn amz_headers_that_are_not_signed_are_refused() {
    let mut fields = sdk_signed(b"", SystemTime::now());
    fields.insert("x-amz-meta", HeaderValue::from_static("smuggled"));
    assert_eq!(
        Claim::parse(&fields).unwrap_err(),
        AuthError::Unsigned("x-amz-meta".to_owned())
    );
}

#[test]
fn a_second_target_or_date_is_refused() {
    let mut fields = sdk_signed(b"", SystemTime::now());
    fields.append("x-amz-date", HeaderValue::from_static("20150830T123600Z"));
    assert!(matches!(Claim::parse(&fields), Err(AuthError::Incomplete(_))));
    let mut fields = sdk_signed(b"", SystemTime::now());
    fields.append("x-amz-target", HeaderValue::from_static("BerthV1.GetServerInfo"));
    let claim = Claim::parse(&fields).unwrap();
    assert!(claim.verify(signed(&fields, b""), SECRET).is_err());
}

#[test]
fn time_may_be_off_by_the_limit_and_no_more() {
    let claim = |timestamp: &'static str| {
        let fields = headers(&[
            ("host", "example.amazonaws.com"),
            ("x-amz-date", timestamp),
            ("authorization", &authorization("host;x-amz-date", "00")),
        ]);
        Claim::parse(&fields).unwrap()
    };
    let limit = Duration::from_secs(300);
    for (timestamp, expected) in [
        ("20150830T123100Z", Ok(())),
        ("20150830T124100Z", Ok(())),
        (
            "20150830T123059Z",
            Err("Signature expired: 20150830T123059Z is now earlier than 20150830T123100Z"),
        ),
        (
            "20150830T124101Z",
            Err("Signature not yet current: 20150830T124101Z is still later than 20150830T124100Z"),
        ),
    ] {
        match (claim(timestamp).check_time(AT, limit), expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(start)) => {
                assert!(error.to_string().starts_with(start), "{error}");
                assert!(
                    error
                        .to_string()
                        .contains("The server's clock says 20150830T123600Z"),
                    "{error}"
                );
            }
            (got, _) => panic!("{timestamp}: {got:?}"),
        }
    }
}

#[test]
fn what_is_no_signature_says_what_is_missing() {
    let good = authorization("host;x-amz-date", "00");
    for (authorization, date, expected) in [
        (
            "Basic eDp5",
            "20150830T123600Z",
            "Authorization header must start with 'AWS4-HMAC-SHA256'",
        ),
        (
            "AWS4-HMAC-SHA256 SignedHeaders=host, Signature=00",
            "20150830T123600Z",
            "requires 'Credential' parameter",
        ),
        (
            &good.replace("Signature=00", "Signature=zz"),
            "20150830T123600Z",
            "is not hexadecimal",
        ),
        (
            &good.replace("/service/", "/"),
            "20150830T123600Z",
            "Credential must be KEY/YYYYMMDD/REGION/SERVICE",
        ),
        (&good, "yesterday", "X-Amz-Date must look like"),
        (&good, "20150831T123600Z", "is not that of X-Amz-Date"),
        (
            &good.replace("host;x-amz-date", "host;x-amz-date;x-other"),
            "20150830T123600Z",
            "names 'x-other'",
        ),
        (
            &good.replace("host;x-amz-date", "x-amz-date"),
            "20150830T123600Z",
            "header host must be signed",
        ),
    ] {
        let fields = headers(&[
            ("host", "example.amazonaws.com"),
            ("x-amz-date", date),
            ("authorization", authorization),
        ]);
        let error = Claim::parse(&fields).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert_eq!(Claim::parse(&HeaderMap::new()).unwrap_err(), AuthError::Missing);
}
