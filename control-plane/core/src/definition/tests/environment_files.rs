use proptest::prelude::*;

use super::*;

const FILES: &str = "containerDefinitions[0].environmentFiles";

fn files(values: &[&str]) -> Value {
    let file = |value: &&str| json!({"type": "s3", "value": value});
    container("environmentFiles", values.iter().map(file).collect())
}

#[test]
fn files_of_the_store_and_of_servers_are_kept_as_they_are_named() {
    let long = format!("arn:aws:s3:::b-1/{}.env", "k".repeat(508));
    let values = [
        "arn:aws:s3:::config/web.env",
        "arn:aws-cn:s3:::a.b/c/d e/ä.env",
        &long,
        "https://config.example/web",
        "http://10.0.0.1:8080/a.env?token=x%20y",
        "https://[fd00::1]:8443",
        "https://h?x",
    ];
    let echo = accepted(&files(&values)).definition;
    let kept = &echo["containerDefinitions"][0]["environmentFiles"];
    assert_eq!(
        *kept,
        files(&values)["containerDefinitions"][0]["environmentFiles"]
    );
    assert!(echo["containerDefinitions"][1].get("environmentFiles").is_none());
    let attribute = json!({"name": "ecs.capability.env-files.s3"});
    assert!(
        echo["requiresAttributes"]
            .as_array()
            .unwrap()
            .contains(&attribute)
    );
    assert_eq!(accepted(&echo).definition, echo);
}

#[test]
fn what_is_no_place_of_a_file_is_refused_with_its_path() {
    let long_key = format!("arn:aws:s3:::config/{}.env", "k".repeat(509));
    let long_url = format!("https://a/{}", "x".repeat(2_039));
    for (value, part) in [
        ("", "is no environment file"),
        ("web.env", "is no environment file"),
        ("s3://config/web.env", "is no environment file"),
        ("ftp://config/web.env", "is no environment file"),
        ("HTTPS://config/web.env", "is no environment file"),
        ("arn:aws:s3:::web.env", "is not the ARN of a file"),
        ("arn:aws:s3:eu-west-1::config/web.env", "is not the ARN of a file"),
        ("arn:aws:ssm:::config/web.env", "is not the ARN of a file"),
        ("arn:aws:s3:::Config/web.env", "is not a bucket's name"),
        ("arn:aws:s3:::co/web.env", "is not a bucket's name"),
        ("arn:aws:s3:::config/web.txt", "does not end in .env"),
        ("arn:aws:s3:::config/a\tb.env", "control character"),
        (&long_key, "a key of 513 bytes"),
        (&long_url, "a URL of 2049 characters"),
        ("https://me:secret@config.example/web.env", "a URL with a user"),
        ("https:///web.env", "is not a URL"),
        ("https://a b/web.env", "is not a URL"),
        ("https://a/web.env#x", "is not a URL"),
        ("https://a:0/web.env", "is not a URL"),
        ("https://a:65536/", "is not a URL"),
        ("https://a:+1/", "is not a URL"),
        ("https://a:/", "is not a URL"),
        ("https://[::1/", "is not a URL"),
        ("https://ä.example/", "is not a URL"),
    ] {
        let said = problems(&files(&["https://a/b", value]));
        let at = format!("{FILES}[1].value: ");
        assert!(
            matches!(&said[..], [one] if one.starts_with(&at) && one.contains(part)),
            "{value:?}: {said:?}"
        );
        assert!(!said[0].contains("secret"), "{said:?}");
    }
}

#[test]
fn their_number_and_their_type_are_bounded() {
    assert_eq!(problems(&files(&["https://a/b"; 10])), Vec::<String>::new());
    assert_eq!(
        problems(&files(&["https://a/b"; 11])),
        [format!("{FILES}: 11 files, the limit is 10")]
    );
    let other = container(
        "environmentFiles",
        json!([{"type": "http", "value": "https://a"}, {"value": "https://a"}, {"type": "s3"}]),
    );
    assert_eq!(
        problems(&other),
        [
            format!("{FILES}[0].type: expected one of s3; got \"http\""),
            format!("{FILES}[1].type: required"),
            format!("{FILES}[2].value: required"),
        ]
    );
}

proptest! {
    /// What is taken for a file of the store is found there again by its name.
    #[test]
    fn any_text_is_a_place_or_a_problem(
        value in "(arn:aws(-cn|-us-gov)?:s3:::[a-z.-]{0,5}/?[ -~ä]{0,5}(\\.env)?)|(https?://[\\[\\]:@a1./?#]{0,9})|.{0,20}"
    ) {
        match EnvironmentSource::parse(&value) {
            Ok(EnvironmentSource::Stored(file)) => {
                prop_assert_eq!(StoredFile::from_arn(&file.to_string()), Ok(file));
            }
            Ok(EnvironmentSource::Url(url)) => prop_assert_eq!(url, value),
            Err(problem) => prop_assert!(!problem.is_empty()),
        }
    }
}
