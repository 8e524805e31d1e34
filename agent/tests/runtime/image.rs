//! A busybox image of two layers as a docker archive, made from this machine's static busybox.

use std::{fs, path::Path};

use sha2::{Digest, Sha256};

pub const REFERENCE: &str = "localhost/busy:latest";

/// Commands the tests use.
const APPLETS: [&str; 14] = [
    "sh", "sleep", "cat", "id", "env", "pwd", "tail", "true", "false", "ls", "touch", "hostname", "readlink",
    "dd",
];

enum File<'a> {
    Bytes(&'a [u8], u32),
    Link(&'a str),
    Directory,
}

fn layer(files: &[(&str, File<'_>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, file) in files {
        let mut header = tar::Header::new_ustar();
        match file {
            File::Bytes(bytes, mode) => {
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, path, *bytes).unwrap();
            }
            File::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                archive.append_link(&mut header, path, target).unwrap();
            }
            File::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o1777);
                header.set_size(0);
                archive.append_data(&mut header, path, std::io::empty()).unwrap();
            }
        }
    }
    archive.into_inner().unwrap()
}

/// Writes the archive. The upper layer replaces the lower one's accounts.
pub fn write_archive(path: &Path) {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let applets: Vec<String> = APPLETS.iter().map(|name| format!("bin/{name}")).collect();
    let mut files = vec![
        ("bin/busybox", File::Bytes(&busybox, 0o755)),
        (
            "etc/passwd",
            File::Bytes(b"root:x:0:0::/root:/bin/sh\nold:x:9:9::/:/bin/sh\n", 0o644),
        ),
        ("etc/group", File::Bytes(b"root:x:0:\nextra:x:50:app\n", 0o644)),
        ("tmp", File::Directory),
    ];
    files.extend(applets.iter().map(|path| (path.as_str(), File::Link("busybox"))));
    let lower = layer(&files);
    let accounts = b"root:x:0:0::/root:/bin/sh\napp:x:33:34::/:/bin/sh\n";
    let upper = layer(&[("etc/passwd", File::Bytes(accounts, 0o644))]);

    let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&lower)), format!("sha256:{}", digest(&upper))]},
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest = serde_json::json!([{
        "Config": config_name, "RepoTags": [REFERENCE], "Layers": ["lower.tar", "upper.tar"],
    }])
    .to_string();
    let whole = layer(&[
        (&config_name, File::Bytes(config.as_bytes(), 0o644)),
        ("lower.tar", File::Bytes(&lower, 0o644)),
        ("upper.tar", File::Bytes(&upper, 0o644)),
        ("manifest.json", File::Bytes(manifest.as_bytes(), 0o644)),
    ]);
    fs::write(path, whole).unwrap();
}
