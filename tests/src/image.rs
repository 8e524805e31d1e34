//! Owns the images of the tests: docker archives made on the spot from Debian's static busybox.

use std::path::Path;

use sha2::{Digest as _, Sha256};

/// The reference of the image that [`busybox`] writes. Nothing listens at that address.
pub const BUSYBOX: &str = "127.0.0.1:1/busy:latest";

/// Writes an archive of an image with busybox and all its applets.
pub fn busybox(path: &Path) {
    archive(path, BUSYBOX, &[]);
}

/// As [`busybox`], under another reference, and with volumes that it declares. `/srv/html` belongs to user 1000.
pub fn archive(path: &Path, reference: &str, volumes: &[&str]) {
    write(path, reference, volumes, "FROM_IMAGE=yes");
}

/// As [`busybox`], with another variable in the image's environment.
pub fn busybox_with(path: &Path, variable: &str) {
    write(path, BUSYBOX, &[], variable);
}

fn write(path: &Path, reference: &str, volumes: &[&str], variable: &str) {
    let binary = std::fs::read("/bin/busybox").expect("/bin/busybox: install the package busybox-static");
    let applets = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap()
        .stdout;
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(binary.len() as u64);
    layer
        .append_data(&mut header, "bin/busybox", binary.as_slice())
        .unwrap();
    for applet in String::from_utf8(applets)
        .unwrap()
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer
            .append_link(&mut header, format!("bin/{applet}"), "busybox")
            .unwrap();
    }
    for (name, content) in [
        (
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nweb:x:1000:\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        layer.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    for (name, mode, content) in [
        ("srv/html/", 0o750, ""),
        ("srv/html/index", 0o640, "of the image\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_size(content.len() as u64);
        layer.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    for dir in ["tmp/", "www/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_data(&mut header, dir, std::io::empty()).unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let architecture = if std::env::consts::ARCH == "aarch64" {
        "arm64"
    } else {
        "amd64"
    };
    let volumes: serde_json::Map<_, _> = volumes
        .iter()
        .map(|path| ((*path).to_owned(), serde_json::json!({})))
        .collect();
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux",
        "config": { "Env": ["PATH=/bin", variable], "Cmd": ["sleep", "3600"], "Volumes": volumes },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(&layer)))] },
    });
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(std::fs::File::create(path).unwrap());
    let files = [
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer),
        ("manifest.json", manifest.to_string().into_bytes()),
    ];
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive
            .append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    archive.finish().unwrap();
}
