//! Owns `dev.env`: where a running `berth dev` is and with which keys, as a file that a shell can source.
//! Never decides who may read it.

use std::path::PathBuf;

use crate::endpoint::Keys;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevEnvironment {
    pub endpoint_url: String,
    pub region: String,
    pub keys: Keys,
    /// Whose certificates are believed, if not the system's.
    pub ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("line {0} is not `export NAME=VALUE`")]
    Line(usize),
}

const ACCESS_KEY: &str = "AWS_ACCESS_KEY_ID";
const SECRET_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const REGION: &str = "AWS_DEFAULT_REGION";
const CA_BUNDLE: &str = "AWS_CA_BUNDLE";
const ENDPOINT: &str = "BERTH_ENDPOINT_URL";

impl DevEnvironment {
    /// The file's content. Values have no character that a shell would treat specially: see `secrets`.
    pub fn render(&self) -> String {
        format!(
            "# Written by `berth dev`. For the AWS command line: . THIS_FILE\n\
             # Versions before 2.13 do not know AWS_ENDPOINT_URL_ECS: give them --endpoint-url.\n\
             export {ACCESS_KEY}={}\nexport {SECRET_KEY}={}\nexport {REGION}={}\n\
             export {ENDPOINT}={url}\nexport AWS_ENDPOINT_URL_ECS={url}\n",
            self.keys.access_key_id,
            self.keys.secret_access_key,
            self.region,
            url = self.endpoint_url,
        )
    }

    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut values = std::collections::BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = line
                .strip_prefix("export ")
                .and_then(|rest| rest.split_once('='))
                .ok_or(ParseError::Line(number + 1))?;
            values.insert(name.trim(), value.trim().to_owned());
        }
        let ca_file = values.remove(CA_BUNDLE).filter(|path| !path.is_empty());
        let mut take = |name: &'static str| {
            values
                .remove(name)
                .filter(|value| !value.is_empty())
                .ok_or(ParseError::Missing(name))
        };
        Ok(Self {
            endpoint_url: take(ENDPOINT)?,
            region: take(REGION)?,
            keys: Keys {
                access_key_id: take(ACCESS_KEY)?,
                secret_access_key: take(SECRET_KEY)?,
                session_token: None,
            },
            ca_file: ca_file.map(PathBuf::from),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev() -> DevEnvironment {
        DevEnvironment {
            endpoint_url: "http://127.0.0.1:7070".into(),
            region: "us-east-1".into(),
            keys: Keys {
                access_key_id: "BERTHAB".into(),
                secret_access_key: "s/+=".into(),
                session_token: None,
            },
            ca_file: None,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(DevEnvironment::parse(&dev().render()), Ok(dev()));
    }

    #[test]
    fn a_shell_can_source_it() {
        let script = format!(
            "{}echo $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $AWS_ENDPOINT_URL_ECS",
            dev().render()
        );
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(script)
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "BERTHAB s/+= http://127.0.0.1:7070\n"
        );
    }

    #[test]
    fn half_a_file_is_said_to_be_one() {
        assert_eq!(
            DevEnvironment::parse("export AWS_ACCESS_KEY_ID=\n"),
            Err(ParseError::Missing(ENDPOINT))
        );
        assert_eq!(DevEnvironment::parse("\nFOO"), Err(ParseError::Line(2)));
    }
}
