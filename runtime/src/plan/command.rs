//! What a process executes: arguments, environment, where the program is looked for, where it starts.

use std::ffi::CString;

use oci_spec::runtime::Process;

use super::{c_string, relative};
use crate::error::Result;
use crate::sys::clone::CStringArray;

/// The most directories of PATH that are tried.
const MAX_CANDIDATES: usize = 256;

/// A command, ready for execve.
#[derive(Debug)]
pub(crate) struct CommandPlan {
    pub(crate) arguments: CStringArray,
    pub(crate) environment: CStringArray,
    /// Paths to try in this order; one where the name holds a slash, as execvp(3) has it.
    pub(crate) candidates: Vec<CString>,
    /// The program was looked for on PATH.
    pub(crate) searched: bool,
    /// Working directory, relative to the root.
    pub(crate) cwd: CString,
}

pub(crate) fn plan(process: &Process) -> Result<CommandPlan> {
    let arguments = process.args().as_deref().unwrap_or_default();
    let program = arguments.first().map(String::as_str).unwrap_or_default();
    let environment = process.env().as_deref().unwrap_or_default();
    let searched = !program.contains('/');
    let candidates = if searched {
        search(program, environment)?
    } else {
        vec![c_string("process.args", program)?]
    };
    let strings = |list: &[String]| {
        list.iter()
            .map(|text| c_string("process", text.as_bytes()))
            .collect::<Result<Vec<_>>>()
            .map(CStringArray::new)
    };
    Ok(CommandPlan {
        arguments: strings(arguments)?,
        environment: strings(environment)?,
        candidates,
        searched,
        cwd: relative(process.cwd())?,
    })
}

/// The program's name in each directory of the environment's last PATH. Without PATH there is none;
/// an empty directory is the working directory, as in execvp(3).
fn search(program: &str, environment: &[String]) -> Result<Vec<CString>> {
    let Some(path) = environment
        .iter()
        .rev()
        .find_map(|assignment| assignment.strip_prefix("PATH="))
    else {
        return Ok(Vec::new());
    };
    path.split(':')
        .take(MAX_CANDIDATES)
        .map(|directory| match directory {
            "" => c_string("process.args", format!("./{program}")),
            directory => c_string("process.args", format!("{directory}/{program}")),
        })
        .collect()
}
