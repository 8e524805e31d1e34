//! Owns the binding of the listeners. Never replaces a socket at which somebody listens.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// Why it cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{}: somebody listens there already: is another one of us running?", .0.display())]
    InUse(PathBuf),
    #[error("{}: something that is no socket is in the way: move it", .0.display())]
    NoSocket(PathBuf),
    #[error("listen on {}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("metrics_listen: listen on {address}{}", advice(source))]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("start the thread for health and metrics")]
    Thread(#[source] io::Error),
}

/// What to do about a port that cannot be had, to follow the address in an error.
pub fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (`ss -ltnp` says who has the port: stop that, or choose another)",
        io::ErrorKind::AddrNotAvailable => " (no interface of this host has the address)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need CAP_NET_BIND_SERVICE)",
        _ => "",
    }
}

/// The socket's file; removed when dropped, unless another one is there by then.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // What is left is replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Binds a socket of the given mode at `path`. It is bound beside it and moved there, so that it never has another
/// mode, nor is missing while it replaces a stale one.
pub(super) fn unix(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile), ListenError> {
    let at = |source| ListenError::Socket {
        path: path.into(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NoSocket(path.into())),
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(ListenError::InUse(path.into())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_directory(path).map_err(at)?,
        Err(error) => return Err(at(error)),
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let bound = || {
        // Of a process that had our id and died here.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&beside)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(mode))?;
        let inode = inode(&beside)?;
        fs::rename(&beside, path)?;
        listener.set_nonblocking(true)?;
        Ok((listener, inode))
    };
    let (listener, inode) = bound().map_err(|source| {
        // Best effort: the error that is reported is the one before.
        let _ = fs::remove_file(&beside);
        at(source)
    })?;
    let path = path.into();
    Ok((listener, SocketFile { path, inode }))
}

fn make_directory(socket: &Path) -> io::Result<()> {
    let Some(directory) = socket.parent() else {
        return Ok(());
    };
    match fs::DirBuilder::new().mode(0o755).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn tcp(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let bound = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound().map_err(|source| ListenError::Tcp { address, source })
}
