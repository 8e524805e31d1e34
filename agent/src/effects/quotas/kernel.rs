//! Owns the system calls of project quotas: quotactl_fd(2), and the ioctls that give a directory its project. What they need of
//! `unsafe` is in three small functions.

use std::{
    fs::File,
    io, mem,
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
};

/// Of `quotactl_fd`, which does not need to know the device: the same number on all architectures.
const SYS_QUOTACTL_FD: libc::c_long = 443;
const PRJQUOTA: u32 = 2;
/// linux/dqblk_xfs.h; the kernel answers for all file systems.
const Q_XGETQSTAT: u32 = 0x5805;
/// There, `FS_QUOTA_PDQ_ENFD`: limits of projects are enforced.
const PROJECTS_ENFORCED: u16 = 1 << 5;
/// linux/fs.h: what is made below gets the directory's project.
const PROJECT_INHERIT: u32 = 0x200;
/// Blocks in which limits are given, whatever the file system has.
const QUOTA_BLOCK_BYTES: u64 = 1_024;
/// linux/quota.h: the block limits are given.
const QIF_BLIMITS: u32 = 1;

/// linux/fs.h
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "private")]
pub struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

nix::ioctl_read!(fs_getxattr, b'X', 31, FsXattr);
nix::ioctl_write_ptr!(fs_setxattr, b'X', 32, FsXattr);

/// Whether a file system bounds projects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enforcement {
    Full,
    /// Why not, and what to do.
    None(String),
}

/// Of the file system of a directory.
///
/// # Errors
/// The directory cannot be opened, or asked.
pub(super) fn enforcement(directory: &Path) -> io::Result<Enforcement> {
    const ADVICE: &str = "its file system has no project quota in force: mount XFS, or ext4 with the feature project, with prjquota";
    // Larger than what is written there, fs_quota_stat of linux/dqblk_xfs.h; aligned as it is.
    let mut answer = [0_u64; 32];
    let asked = quotactl(
        &File::open(directory)?,
        Q_XGETQSTAT,
        0,
        answer.as_mut_ptr().cast(),
    );
    match asked {
        Err(error) if is_unsupported(&error) => return Ok(Enforcement::None(ADVICE.into())),
        asked => asked?,
    }
    // After the version and a byte of padding.
    let first = answer[0].to_ne_bytes();
    let flags = u16::from_ne_bytes([first[2], first[3]]);
    Ok(if flags & PROJECTS_ENFORCED != 0 {
        Enforcement::Full
    } else {
        Enforcement::None(ADVICE.into())
    })
}

/// The file system or the kernel knows no quotas, or they are off.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [
        libc::ENOSYS,
        libc::ESRCH,
        libc::EOPNOTSUPP,
        libc::EINVAL,
        libc::ENOTTY,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| unsupported.contains(&errno))
}

/// What a project may have on the file system of a directory; zero: no limit.
pub(super) fn set_limit(directory: &Path, project: u32, bytes: u64) -> io::Result<()> {
    let mut limits = empty();
    limits.dqb_bhardlimit = bytes.div_ceil(QUOTA_BLOCK_BYTES);
    limits.dqb_bsoftlimit = 0;
    limits.dqb_valid = QIF_BLIMITS;
    let target = (&raw mut limits).cast();
    #[allow(clippy::cast_sign_loss, reason = "a small constant")]
    quotactl(&File::open(directory)?, libc::Q_SETQUOTA as u32, project, target)
}

/// What a project has there now, bytes.
pub(super) fn used(directory: &Path, project: u32) -> io::Result<u64> {
    let mut limits = empty();
    let target = (&raw mut limits).cast();
    #[allow(clippy::cast_sign_loss, reason = "a small constant")]
    let asked = quotactl(&File::open(directory)?, libc::Q_GETQUOTA as u32, project, target);
    match asked {
        // XFS has no record of one that nobody used.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        asked => asked.map(|()| limits.dqb_curspace),
    }
}

/// A directory, and all that is made below from now on, counts for the project.
pub(super) fn set_project(directory: &Path, project: u32) -> io::Result<()> {
    let file = File::open(directory)?;
    let mut attributes = FsXattr::default();
    get_attributes(file.as_raw_fd(), &mut attributes)?;
    if attributes.projid == project && attributes.xflags & PROJECT_INHERIT != 0 {
        return Ok(());
    }
    attributes.projid = project;
    attributes.xflags |= PROJECT_INHERIT;
    set_attributes(file.as_raw_fd(), &attributes)
}

fn empty() -> libc::dqblk {
    // SAFETY: dqblk is plain numbers, for all of which zero is a value.
    #[allow(unsafe_code)]
    unsafe {
        mem::zeroed()
    }
}

/// `target` is what the command writes to, or reads.
fn quotactl(file: &File, command: u32, project: u32, target: *mut libc::c_void) -> io::Result<()> {
    // QCMD of sys/quota.h.
    let command = command << 8 | PRJQUOTA;
    // SAFETY: the descriptor is open; the callers above give `target` the type of their command, and it lives through the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(SYS_QUOTACTL_FD, file.as_raw_fd(), command, project, target) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn get_attributes(fd: RawFd, attributes: &mut FsXattr) -> io::Result<()> {
    // SAFETY: the descriptor is open, and FsXattr is laid out as the kernel's struct fsxattr.
    #[allow(unsafe_code)]
    let result = unsafe { fs_getxattr(fd, attributes) };
    result.map(drop).map_err(Into::into)
}

fn set_attributes(fd: RawFd, attributes: &FsXattr) -> io::Result<()> {
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let result = unsafe { fs_setxattr(fd, attributes) };
    result.map(drop).map_err(Into::into)
}
