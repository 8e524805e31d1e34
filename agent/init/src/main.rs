//! The program itself: see the library beside it.

fn main() -> std::process::ExitCode {
    berth_init::main()
}
