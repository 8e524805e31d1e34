//! Owns what `berth dev` prints for people: what runs, and what to do next.

use std::path::Path;

use super::session::Session;
use crate::arguments::{DEFAULT_STATE_DIR, DevArgs, Global};
use crate::output;

/// Ends with the line `ready`, for scripts that wait for it.
pub fn print(session: &Session, global: &Global, args: &DevArgs) {
    let url = &session.environment.endpoint_url;
    let paths = &session.ground.paths;
    let after = if args.keep_tasks {
        "ends it; tasks go on"
    } else {
        "ends it and all tasks"
    };
    let text = format!(
        "berth dev: ECS API at {url}, tasks get addresses of {cidr} ({origin})\n\
         state, keys, logs: {state}\n\
         \n\
         in another terminal, as root:\n\
         \x20 {berth} run IMAGE\n\
         \x20 {berth} ps\n\
         \n\
         with the AWS command line (versions before 2.13 need --endpoint-url, others may leave it away):\n\
         \x20 . {dev_env}\n\
         \x20 aws ecs register-task-definition --endpoint-url {url} --cli-input-json file://taskdef.json\n\
         \x20 aws ecs run-task --endpoint-url {url} --task-definition FAMILY \\\n\
         \x20   --network-configuration 'awsvpcConfiguration={{subnets=[subnet-default]}}'\n\
         \x20 aws ecs list-tasks --endpoint-url {url}\n\
         \n\
         Ctrl-C {after}\n\
         ready\n",
        cidr = session.ground.task_cidr,
        origin = session.ground.cidr_origin.explain(),
        state = paths.state_dir.display(),
        dev_env = paths.dev_env().display(),
        berth = format!("berth{}", state_dir_flag(&global.state_dir)),
    );
    // A terminal that went away is no reason to end.
    let _ = output::print(&text);
}

/// The command that clears up after a killed `berth dev` started with these arguments.
pub fn stop_all(global: &Global, args: &DevArgs) -> String {
    let mut command = format!("berth dev --stop-all{}", state_dir_flag(&global.state_dir));
    if args.instance != "berth-dev" {
        command.push_str(&format!(" --instance {}", args.instance));
    }
    if let Some(socket) = &args.containerd {
        command.push_str(&format!(" --containerd {}", socket.display()));
    }
    command
}

fn state_dir_flag(dir: &Path) -> String {
    if dir == Path::new(DEFAULT_STATE_DIR) {
        String::new()
    } else {
        format!(" --state-dir {}", dir.display())
    }
}
