//! Owns paths of the host that are volumes: whether they may be, and that they are there. Never changes what is there, and where
//! the operator allows only some paths, never leaves them: a link below one leads nowhere else.

use std::{
    ffi::OsStr,
    io,
    os::fd::OwnedFd,
    path::{Component, Path},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2},
    io::Errno,
};

use super::{VolumeError, mounts, places::Places};

/// As `docker run -v` makes it.
const MODE: Mode = Mode::from_raw_mode(0o755);

/// Sees to it that the path is there. `make`: a directory is made where there is nothing. Where the node restricts paths, what
/// is there is mounted at `held`.
pub(super) fn ready(
    places: &Places,
    volume: &str,
    path: &str,
    make: bool,
    held: &Path,
) -> Result<(), VolumeError> {
    let path = Path::new(path);
    let (allowed, rest) = places.allowed(volume, path)?;
    let failed = |step| VolumeError::io(volume, step, path);
    if !places.restricts() {
        return match std::fs::metadata(path) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
                std::fs::create_dir_all(path).map_err(failed("make the path of the host"))
            }
            Err(error) => Err(failed("look at the path of the host")(error)),
        };
    }
    let opened = open_below(allowed, rest, make).map_err(failed("open the path of the host"))?;
    let is_dir = rustix::fs::fstat(&opened)
        .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
        .map_err(|error| failed("look at the path of the host")(error.into()))?;
    let made = if is_dir {
        std::fs::create_dir_all(held)
    } else {
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(held)
            .map(drop)
    };
    made.and_then(|()| mounts::bind(&opened, held))
        .map_err(failed("mount the path of the host"))
}

/// Opens `rest` inside of `top`, of which the operator answers for every link; those below may lead anywhere inside.
fn open_below(top: &Path, rest: &Path, make: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let top = rustix::fs::open(top, flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        openat2(&top, path, flags, Mode::empty(), resolve)
    };
    match open(rest) {
        Err(Errno::NOENT) if make => {}
        done => return Ok(done?),
    }
    let mut way = std::path::PathBuf::new();
    for part in rest.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let parent = open(&way)?;
        make_directory(&parent, name)?;
        way.push(name);
    }
    Ok(open(rest)?)
}

fn make_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match mkdirat(parent, name, MODE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens a directory of the agent's own, or of the operator's.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_link_below_an_allowed_path_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("srv");
        fs::create_dir_all(top.join("in")).unwrap();
        fs::create_dir(dir.path().join("secret")).unwrap();
        symlink("in", top.join("inside")).unwrap();
        symlink("../secret", top.join("outside")).unwrap();
        symlink(dir.path().join("secret"), top.join("absolute")).unwrap();
        let open = |rest: &str, make| open_below(&top, Path::new(rest), make);
        open("", false).unwrap();
        open("inside", false).unwrap();
        open("inside/new/deep", true).unwrap();
        assert!(top.join("in/new/deep").is_dir());
        for rest in ["outside", "absolute", "outside/new", "absolute/new"] {
            open(rest, true).unwrap_err();
        }
        assert_eq!(fs::read_dir(dir.path().join("secret")).unwrap().count(), 0);
        assert_eq!(
            open("missing", false).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn only_allowed_paths_and_never_the_agents_own() {
        let places = |allowed: &[&str]| {
            let allowed = allowed.iter().map(Into::into).collect();
            Places::new(Path::new("/var/lib/berth"), Path::new("/run/berth"), allowed)
        };
        let may = |places: &Places, path: &str| places.allowed("v", Path::new(path)).is_ok();
        let all = places(&["/"]);
        let some = places(&["/srv", "/data/x"]);
        assert!(!all.restricts() && some.restricts() && places(&[]).restricts());
        for (path, by_all, by_some) in [
            ("/", true, false),
            ("/etc", true, false),
            ("/srv", true, true),
            ("/srv/a/b", true, true),
            ("/srvx", true, false),
            ("/data", true, false),
            ("/data/x", true, true),
            ("/var/lib", true, false),
            ("/var/lib/berth", false, false),
            ("/run/berth/agent.sock", false, false),
        ] {
            assert_eq!((may(&all, path), may(&some, path)), (by_all, by_some), "{path}");
        }
        assert!(all.is_above_own(Path::new("/")) && all.is_above_own(Path::new("/run")));
        assert!(!all.is_above_own(Path::new("/srv")));
        let error = places(&["/srv"]).allowed("v", Path::new("/etc")).unwrap_err();
        assert!(error.to_string().contains("volumes.host_paths"), "{error}");
    }

    #[test]
    fn what_is_missing_is_made_only_where_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::new(
            Path::new("/nonexistent/s"),
            Path::new("/nonexistent/r"),
            vec!["/".into()],
        );
        let path = dir.path().join("a/b");
        let text = path.to_str().unwrap();
        let held = dir.path().join("held");
        let missing = ready(&places, "v", text, false, &held).unwrap_err();
        assert!(!missing.retryable(), "{missing}");
        ready(&places, "v", text, true, &held).unwrap();
        assert!(path.is_dir() && !held.exists());
        fs::write(path.join("f"), "").unwrap();
        ready(&places, "v", path.join("f").to_str().unwrap(), true, &held).unwrap();
    }
}
