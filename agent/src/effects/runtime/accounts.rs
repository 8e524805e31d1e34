//! Owns reading an image's accounts from its unpacked layers, as they would look mounted. Never mounts, never leaves
//! the layers: symbolic links are resolved inside the image.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{CString, OsStr, OsString},
    fs, io,
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use berth_agent_core::oci::{User, user};
use containerd_client::types::Mount;

use super::{Runtime, RuntimeError};

/// Images and users whose numbers are remembered: layers never change, so neither do the numbers.
const CACHE_MAX: usize = 512;
/// Of an account file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// As the kernel has it.
const LINKS_MAX: usize = 40;

/// By chain id and user.
pub(super) type Cache = BTreeMap<(String, String), User>;

impl Runtime {
    /// Known from an earlier start of the same image.
    pub(super) fn cached_user(&self, chain_id: &str, user: &str) -> Option<User> {
        let cache = self
            .shared
            .users
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        cache.get(&(chain_id.to_owned(), user.to_owned())).cloned()
    }

    /// The numbers `user` has in the image whose layers are the lower directories of `mounts`.
    pub(super) async fn resolve_user(
        &self,
        id: &str,
        chain_id: &str,
        user: &str,
        mounts: &[Mount],
    ) -> Result<User, RuntimeError> {
        let texts = match layers(mounts) {
            Some(layers) => read_accounts(layers)
                .await
                .map_err(|source| RuntimeError::Accounts {
                    id: id.to_owned(),
                    source,
                })?,
            // Numbers need no account, and root is root.
            None if user.chars().all(|c| c.is_ascii_digit() || c == ':') => (String::new(), String::new()),
            None => {
                let kind = mounts
                    .first()
                    .map(|mount| mount.r#type.clone())
                    .unwrap_or_default();
                return Err(RuntimeError::OpaqueSnapshot {
                    id: id.to_owned(),
                    user: user.to_owned(),
                    kind,
                });
            }
        };
        let unknown = |source| RuntimeError::User {
            id: id.to_owned(),
            user: user.to_owned(),
            source,
        };
        let resolved = user::resolve(user, &texts.0, &texts.1).map_err(unknown)?;
        let mut cache = self
            .shared
            .users
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if cache.len() >= CACHE_MAX {
            cache.clear();
        }
        cache.insert((chain_id.to_owned(), user.to_owned()), resolved.clone());
        Ok(resolved)
    }
}

async fn read_accounts(layers: Layers) -> io::Result<(String, String)> {
    let read = move || Ok((layers.read("etc/passwd")?, layers.read("etc/group")?));
    tokio::task::spawn_blocking(read)
        .await
        .map_err(io::Error::other)?
}

/// The image's directories, top first; `None` where the snapshotter keeps it in something that is no directory.
fn layers(mounts: &[Mount]) -> Option<Layers> {
    let [mount] = mounts else { return None };
    match mount.r#type.as_str() {
        "overlay" => {
            let lower = mount
                .options
                .iter()
                .find_map(|option| option.strip_prefix("lowerdir="))?;
            Some(Layers(lower.split(':').map(PathBuf::from).collect()))
        }
        "bind" | "rbind" => Some(Layers(vec![PathBuf::from(&mount.source)])),
        _ => None,
    }
}

/// One directory as overlayfs would merge it: the same directory in each layer that has it, top first.
#[derive(Clone, Debug)]
struct Layers(Vec<PathBuf>);

enum Entry {
    Missing,
    Directory(Layers),
    File(PathBuf),
    Link(PathBuf),
    Other,
}

impl Layers {
    /// The file's text; empty where it is missing or no regular file.
    fn read(&self, path: &str) -> io::Result<String> {
        let Some(file) = self.find(Path::new(path))? else {
            return Ok(String::new());
        };
        let open = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&file)?;
        let mut bytes = Vec::new();
        open.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn find(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut above: Vec<Layers> = Vec::new();
        let mut here = self.clone();
        let mut links = 0;
        let mut rest: VecDeque<OsString> = parts(path).collect();
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                // Above the root is the root.
                here = above.pop().unwrap_or(here);
                continue;
            }
            match here.entry(&part)? {
                Entry::Directory(merged) => above.push(std::mem::replace(&mut here, merged)),
                Entry::File(file) if rest.is_empty() => return Ok(Some(file)),
                Entry::Link(target) if links < LINKS_MAX => {
                    links += 1;
                    if target.is_absolute() {
                        here = self.clone();
                        above.clear();
                    }
                    let old = std::mem::take(&mut rest);
                    rest = parts(&target).chain(old).collect();
                }
                Entry::Missing | Entry::Other | Entry::File(_) | Entry::Link(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    fn entry(&self, name: &OsStr) -> io::Result<Entry> {
        let mut merged = Vec::new();
        for layer in &self.0 {
            let path = layer.join(name);
            let meta = match fs::symlink_metadata(&path) {
                Ok(meta) => meta,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let kind = meta.file_type();
            if kind.is_dir() {
                let opaque = is_opaque(&path)?;
                merged.push(path);
                if opaque {
                    break;
                }
                continue;
            }
            // A whiteout, or something else under the name, ends what lies below.
            if !merged.is_empty() || (kind.is_char_device() && meta.rdev() == 0) {
                break;
            }
            return Ok(match kind {
                kind if kind.is_file() => Entry::File(path),
                kind if kind.is_symlink() => Entry::Link(fs::read_link(&path)?),
                _ => Entry::Other,
            });
        }
        Ok(if merged.is_empty() {
            Entry::Missing
        } else {
            Entry::Directory(Self(merged))
        })
    }
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    use std::path::Component;
    let named = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components()
        .filter_map(named)
        .collect::<Vec<_>>()
        .into_iter()
}

/// The layer's directory replaces those below (kernel documentation, filesystems/overlayfs).
#[allow(unsafe_code)]
fn is_opaque(directory: &Path) -> io::Result<bool> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let mut value = [0_u8; 1];
    // SAFETY: both strings end in NUL and outlive the call, and the buffer's length is the one given.
    let length = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            c"trusted.overlay.opaque".as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    // Absent, or longer than the one byte that means it.
    Ok(length == 1 && value[0] == b'y')
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn image(layers: &[&[(&str, &str)]]) -> (tempfile::TempDir, Layers) {
        let root = tempfile::tempdir().unwrap();
        let mut dirs = Vec::new();
        for (i, files) in layers.iter().enumerate() {
            let layer = root.path().join(i.to_string());
            fs::create_dir(&layer).unwrap();
            for (path, content) in *files {
                let path = layer.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                match content.strip_prefix("-> ") {
                    Some(target) => symlink(target, path).unwrap(),
                    None => fs::write(path, content).unwrap(),
                }
            }
            dirs.push(layer);
        }
        (root, Layers(dirs))
    }

    #[test]
    fn the_upper_layer_wins_and_directories_merge() {
        let (_root, layers) = image(&[
            &[("etc/passwd", "top")],
            &[("etc/passwd", "low"), ("etc/group", "g")],
        ]);
        assert_eq!(layers.read("etc/passwd").unwrap(), "top");
        assert_eq!(layers.read("etc/group").unwrap(), "g");
        assert_eq!(layers.read("etc/shadow").unwrap(), "");
    }

    #[test]
    fn links_are_followed_inside_the_image_only() {
        let files = [
            ("etc/passwd", "-> /usr/lib/passwd"),
            ("usr/lib/passwd", "inside"),
            ("etc/group", "-> ../../../../etc/hostname"),
            ("etc/loop", "-> loop"),
            ("lib", "-> usr/lib"),
        ];
        let (_root, layers) = image(&[&[], &files]);
        assert_eq!(layers.read("etc/passwd").unwrap(), "inside");
        assert_eq!(layers.read("lib/passwd").unwrap(), "inside");
        assert_eq!(
            layers.read("etc/group").unwrap(),
            "",
            "the host's file must not be read"
        );
        assert_eq!(layers.read("etc/loop").unwrap(), "");
    }

    #[test]
    fn whiteouts_and_opaque_directories_hide_what_lies_below() {
        // Needs root: whiteouts are device nodes and the attribute is a trusted one.
        let (root, layers) = image(&[&[("opt/x", "")], &[("etc/passwd", "low"), ("opt/passwd", "low")]]);
        fs::create_dir(root.path().join("0/etc")).unwrap();
        let node = root.path().join("0/etc/passwd");
        let device = nix::sys::stat::makedev(0, 0);
        nix::sys::stat::mknod(
            &node,
            nix::sys::stat::SFlag::S_IFCHR,
            nix::sys::stat::Mode::empty(),
            device,
        )
        .unwrap();
        assert_eq!(layers.read("etc/passwd").unwrap(), "");

        assert_eq!(layers.read("opt/passwd").unwrap(), "low");
        let opt = root.path().join("0/opt");
        let set = std::process::Command::new("python3")
            .args([
                "-c",
                "import os,sys; os.setxattr(sys.argv[1], 'trusted.overlay.opaque', b'y')",
            ])
            .arg(&opt)
            .status();
        assert!(set.unwrap().success());
        assert_eq!(layers.read("opt/passwd").unwrap(), "");
    }

    #[test]
    fn a_block_device_shows_no_accounts() {
        let mount = |kind: &str| Mount {
            r#type: kind.into(),
            source: "/dev/dm-1".into(),
            ..Mount::default()
        };
        assert!(layers(&[mount("ext4")]).is_none());
        assert!(layers(&[mount("bind")]).is_some());
    }
}
