//! Owns what packages ship beside a program and what its command line alone can tell: man pages and shell completions.
//! Each program has this as a hidden subcommand, `manual DIR`, so that the pages are always those of its own version.
//! Never run on an installed host.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::CommandFactory;
use clap_complete::Shell;

/// Shells that packages have a directory for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Arguments of the hidden subcommand.
#[derive(Clone, Debug, clap::Args)]
pub struct Manual {
    /// Made if missing; gets `man/NAME.1` with a page for each subcommand, and `completion/SHELL/`
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

impl Manual {
    /// Writes the pages and completions of the program whose arguments are `P`.
    ///
    /// # Errors
    /// A file that cannot be written, with its path.
    pub fn write<P: CommandFactory>(&self) -> io::Result<()> {
        let pages = make(&self.directory.join("man"))?;
        clap_mangen::generate_to(P::command(), &pages).map_err(|error| at(&pages, &error))?;
        for shell in SHELLS {
            let directory = make(&self.directory.join("completion").join(shell.to_string()))?;
            let mut command = P::command();
            let name = command.get_name().to_owned();
            clap_complete::generate_to(shell, &mut command, name, &directory)
                .map_err(|error| at(&directory, &error))?;
        }
        Ok(())
    }
}

fn make(directory: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(directory).map_err(|error| at(directory, &error))?;
    Ok(directory.to_owned())
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Berths ships.
    #[derive(Debug, clap::Parser)]
    #[command(name = "quay")]
    enum Program {
        /// Let one in
        Moor {
            #[arg(long)]
            bow: bool,
        },
        #[command(hide = true)]
        Manual(Manual),
    }

    #[test]
    fn every_visible_subcommand_has_a_page_and_every_shell_a_completion() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("made");
        Manual {
            directory: directory.clone(),
        }
        .write::<Program>()
        .unwrap();
        let read = |path: &str| fs::read_to_string(directory.join(path)).unwrap();
        assert!(read("man/quay.1").contains("Berths ships"));
        assert!(read("man/quay-moor.1").contains("bow"));
        assert!(!directory.join("man/quay-manual.1").exists());
        for file in ["bash/quay.bash", "zsh/_quay", "fish/quay.fish"] {
            assert!(read(&format!("completion/{file}")).contains("moor"), "{file}");
        }
    }

    #[test]
    fn an_unwritable_directory_is_named() {
        let error = Manual {
            directory: "/proc/none".into(),
        }
        .write::<Program>()
        .unwrap_err();
        assert!(error.to_string().contains("/proc/none/man"), "{error}");
    }
}
