//! Owns the values of an NFS volume of Docker's driver `local`: the server, what it exports, and the mount options that a node
//! passes to its kernel (nfs(5)), each by its name. Never mounts anything.

use std::net::IpAddr;

use super::mount_options::{For, word, words};
use super::volumes;
use crate::problems::{hint, shown};

/// All options together, bytes: what the kernel takes is one page.
const OPTIONS_BYTES_MAX: usize = 1024;
/// A name in the DNS, bytes.
const HOST_BYTES_MAX: usize = 253;
/// The kernel's NFS_MAXPATHLEN.
const PATH_BYTES_MAX: usize = 1024;
const ADDR: &str = "addr";
const CLIENT_ADDR: &str = "clientaddr";
/// Options that are one word.
const WORDS: &[For] = &[For::Any, For::Nfs];
/// Options whose value is one of these words.
const CHOICES: [(&str, &[&str]); 8] = [
    ("nfsvers", &VERSIONS),
    ("vers", &VERSIONS),
    ("proto", &["tcp", "tcp6"]),
    ("sec", &["sys", "none"]),
    ("lookupcache", &["all", "none", "pos", "positive"]),
    ("local_lock", &["all", "none", "flock", "posix"]),
    ("mountproto", &["tcp", "tcp6", "udp", "udp6"]),
    ("mountvers", &["3"]),
];
const VERSIONS: [&str; 5] = ["3", "4", "4.0", "4.1", "4.2"];
/// Options whose value is a number: the least and the greatest.
const NUMBERS: [(&str, u32, u32); 12] = [
    ("port", 0, 65_535),
    ("mountport", 0, 65_535),
    // Tenths of a second.
    ("timeo", 1, 6000),
    ("retrans", 0, 100),
    ("rsize", 1024, 1 << 20),
    ("wsize", 1024, 1 << 20),
    ("acregmin", 0, 86_400),
    ("acregmax", 0, 86_400),
    ("acdirmin", 0, 86_400),
    ("acdirmax", 0, 86_400),
    ("actimeo", 0, 86_400),
    ("nconnect", 1, 16),
];

/// An NFS volume as it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nfs {
    /// A name or an address.
    pub server: String,
    /// What is mounted of it: absolute.
    pub path: String,
    /// Without `addr`.
    pub options: Vec<String>,
}

/// Or everything that is wrong, by the option of the driver. `version_4`: of type `nfs4`.
pub(super) fn parse(device: &str, o: &str, version_4: bool) -> Result<Nfs, Vec<(&'static str, String)>> {
    let mut wrong = Vec::new();
    let mut options: Vec<String> = Vec::new();
    let mut server = None;
    let given: Vec<&str> = o.split(',').filter(|option| !option.is_empty()).collect();
    for (at, option) in given.iter().enumerate() {
        let name = name_of(option);
        if given[..at].iter().any(|other| name_of(other) == name) {
            wrong.push(("o", format!("{name} is there twice")));
        } else if name == ADDR {
            match option.split_once('=').map(|(_, host)| host) {
                Some(host) if is_host(host) => server = Some(host.to_owned()),
                _ => wrong.push(("o", format!("{} names no host", shown(option)))),
            }
        } else if let Err(message) = check_option(option) {
            wrong.push(("o", message));
        } else {
            options.push((*option).to_owned());
        }
    }
    if !given.iter().any(|option| name_of(option) == ADDR) {
        wrong.push(("o", "needs addr=HOST, the server's name or address".into()));
    }
    if o.len() > OPTIONS_BYTES_MAX {
        let message = format!("{} bytes, the limit is {OPTIONS_BYTES_MAX}", o.len());
        wrong.push(("o", message));
    }
    let version = options.iter().find(|option| name_of(option) == "nfsvers");
    match version {
        Some(version) if version_4 && version.ends_with("=3") => {
            wrong.push(("o", format!("{version}: type nfs4 is version 4; use type nfs")));
        }
        None if version_4 => options.push("nfsvers=4".into()),
        _ => {}
    }
    let path = check_device(device, server.as_deref()).unwrap_or_else(|message| {
        wrong.push(("device", message));
        String::new()
    });
    match server {
        Some(server) if wrong.is_empty() => Ok(Nfs {
            server,
            path,
            options,
        }),
        _ => Err(wrong),
    }
}

/// Two names of one option, and words of which only one can be meant, are the same.
fn name_of(option: &str) -> &str {
    match option.split_once('=').map_or(option, |(name, _)| name) {
        "vers" => "nfsvers",
        "soft" | "softerr" => "hard",
        name => name,
    }
}

fn check_option(option: &str) -> Result<(), String> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    match (name, value) {
        (name, None) if word(name).is_some_and(|purpose| WORDS.contains(&purpose)) => return Ok(()),
        (CLIENT_ADDR, Some(address)) if address.parse::<IpAddr>().is_ok() => return Ok(()),
        (CLIENT_ADDR, _) => return Err(format!("{}: expected an address", shown(option))),
        ("sec", Some(flavour)) if flavour.starts_with("krb5") => {
            return Err(format!(
                "{}: not supported: the agent knows of no Kerberos on its node; use sec=sys",
                shown(option)
            ));
        }
        ("bg" | "fg" | "retry", _) => {
            return Err(format!(
                "{name}: not supported: it is for the program mount.nfs, and the kernel is asked directly; leave it out"
            ));
        }
        ("udp", _) => return Err("udp: not supported: kernels have it no more; leave it out".into()),
        ("fsc", _) => {
            return Err("fsc: not supported: it needs a cachefilesd that the agent knows nothing of".into());
        }
        _ => {}
    }
    if let Some((_, choices)) = CHOICES.iter().find(|(choice, _)| *choice == name) {
        return match value {
            Some(value) if choices.contains(&value) => Ok(()),
            _ => Err(format!(
                "{}: expected {name}={}",
                shown(option),
                choices.join(", ")
            )),
        };
    }
    if let Some((_, least, most)) = NUMBERS.iter().find(|(number, ..)| *number == name) {
        let digits = value.filter(|value| value.bytes().all(|b| b.is_ascii_digit()));
        return match digits.and_then(|digits| digits.parse::<u32>().ok()) {
            Some(number) if (*least..=*most).contains(&number) => Ok(()),
            _ => Err(format!(
                "{}: expected {name}= and {least} to {most}",
                shown(option)
            )),
        };
    }
    let names = CHOICES.iter().map(|(name, _)| *name);
    let names = names.chain(NUMBERS.iter().map(|(name, ..)| *name));
    let hint = hint(name, words(WORDS).chain(names).chain([ADDR, CLIENT_ADDR]));
    Err(format!(
        "{} is not an option of NFS that is supported{hint}",
        shown(option)
    ))
}

/// The path that is exported. Docker documents `:/path`; a server before the colon must be the one that is asked.
fn check_device(device: &str, server: Option<&str>) -> Result<String, String> {
    let Some((host, path)) = device.find(":/").map(|at| (&device[..at], &device[at + 1..])) else {
        return Err(format!(
            "{}: expected :/PATH, what the server exports",
            shown(device)
        ));
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if !host.is_empty() && server.is_some_and(|server| server != bare) {
        return Err(format!(
            "{} is not the server of addr; expected :/PATH",
            shown(host)
        ));
    }
    volumes::check_path(path)?;
    if path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(format!(
            "no path of NFS: at most {PATH_BYTES_MAX} bytes, without zero"
        ));
    }
    Ok(volumes::normal(path))
}

/// A name as in the DNS, or an address. Nothing that could end the option.
fn is_host(host: &str) -> bool {
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-')
    };
    host.len() <= HOST_BYTES_MAX && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wrong(device: &str, o: &str) -> Vec<String> {
        let wrong = parse(device, o, false).err().unwrap_or_default();
        wrong
            .into_iter()
            .map(|(name, message)| format!("{name}: {message}"))
            .collect()
    }

    #[test]
    fn what_docker_documents_is_accepted() {
        let nfs = |server: &str, path: &str, options: &[&str]| Nfs {
            server: server.into(),
            path: path.into(),
            options: options.iter().map(|&option| option.into()).collect(),
        };
        assert_eq!(
            parse(":/path/to/dir", "addr=192.168.1.1,rw,nfsvers=4", false),
            Ok(nfs("192.168.1.1", "/path/to/dir", &["rw", "nfsvers=4"]))
        );
        assert_eq!(
            parse("fs.example:/", "soft,timeo=30,addr=fs.example,nolock", true),
            Ok(nfs(
                "fs.example",
                "/",
                &["soft", "timeo=30", "nolock", "nfsvers=4"]
            ))
        );
        assert_eq!(
            parse("[fd00::1]:/a//b/", "addr=fd00::1,proto=tcp6,vers=4.1", true),
            Ok(nfs("fd00::1", "/a/b", &["proto=tcp6", "vers=4.1"]))
        );
        assert_eq!(
            parse(":/x", "addr=a,clientaddr=10.0.0.7", false),
            Ok(nfs("a", "/x", &["clientaddr=10.0.0.7"]))
        );
        // As AWS writes it for its own file systems.
        let aws = "addr=fs-1.efs.us-east-1.amazonaws.com,nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport";
        assert_eq!(parse(":/", aws, false).unwrap().options.len(), 7);
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        assert_eq!(
            wrong(
                "/export",
                "rw,nfsvers=2,timeo=0,addr=a b,addr=c,hardd,sec=krb5p,bg,rsize=1,tcp,clientaddr=x"
            ),
            [
                "o: \"nfsvers=2\": expected nfsvers=3, 4, 4.0, 4.1, 4.2",
                "o: \"timeo=0\": expected timeo= and 1 to 6000",
                "o: \"addr=a b\" names no host",
                "o: addr is there twice",
                "o: \"hardd\" is not an option of NFS that is supported (did you mean hard?)",
                "o: \"sec=krb5p\": not supported: the agent knows of no Kerberos on its node; use sec=sys",
                "o: bg: not supported: it is for the program mount.nfs, and the kernel is asked directly; leave it out",
                "o: \"rsize=1\": expected rsize= and 1024 to 1048576",
                "o: \"tcp\" is not an option of NFS that is supported",
                "o: \"clientaddr=x\": expected an address",
                "device: \"/export\": expected :/PATH, what the server exports",
            ]
        );
        assert_eq!(
            wrong(":/x", "rw"),
            ["o: needs addr=HOST, the server's name or address"]
        );
        assert_eq!(
            wrong(":/x", "addr=a,udp,fsc,sec=tls"),
            [
                "o: udp: not supported: kernels have it no more; leave it out",
                "o: fsc: not supported: it needs a cachefilesd that the agent knows nothing of",
                "o: \"sec=tls\": expected sec=sys, none",
            ]
        );
        assert_eq!(wrong(":/x", "addr=a,hard,soft"), ["o: hard is there twice"]);
        assert_eq!(
            wrong(":/x", "addr=a,vers=3,nfsvers=4"),
            ["o: nfsvers is there twice"]
        );
        assert_eq!(wrong(":/x", "addr"), ["o: \"addr\" names no host"]);
        assert_eq!(
            wrong("other:/x", "addr=a"),
            ["device: \"other\" is not the server of addr; expected :/PATH"]
        );
        assert_eq!(
            wrong(":/x/../y", "addr=a"),
            ["device: \"/x/../y\" is not an absolute path without .."]
        );
        let of = |bytes: usize| wrong(&format!(":/{}", "x".repeat(bytes - 1)), "addr=a").len();
        assert_eq!((of(PATH_BYTES_MAX), of(PATH_BYTES_MAX + 1)), (0, 1));
        let longest = format!("addr=a{}", ",".repeat(OPTIONS_BYTES_MAX - 6));
        assert!(wrong(":/x", &longest).is_empty());
        assert_eq!(
            wrong(":/x", &format!("addr=a{}", ",".repeat(1024))),
            ["o: 1030 bytes, the limit is 1024"]
        );
        assert_eq!(
            parse(":/x", "addr=a,vers=3", true).unwrap_err(),
            [("o", "vers=3: type nfs4 is version 4; use type nfs".to_owned())]
        );
    }

    proptest! {
        /// Whatever is accepted is options of known form, of which the kernel reads each as one.
        #[test]
        fn nothing_hides_in_an_option(device in "(a)?:?/[a-z./,=\\\\ ]{0,12}", o in "(addr=[a-z:.,=\\\\ -]{1,8}|rw|vers=[0-9.]{1,3}|[a-z=,]{0,8}|timeo=[0-9-]{1,5}|,){0,6}") {
            if let Ok(nfs) = parse(&device, &o, false) {
                let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:_-".contains(&b));
                prop_assert!(plain(&nfs.server) && !nfs.server.is_empty());
                prop_assert!(nfs.path.starts_with('/') && !nfs.path.split('/').any(|part| part == ".."));
                for option in &nfs.options {
                    let (name, value) = option.split_once('=').unwrap_or((option, "x"));
                    prop_assert!(plain(name) && plain(value) && name != ADDR, "{option}");
                }
            }
        }
    }
}
