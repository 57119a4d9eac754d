//! Which engines' programs a host should have: what `gpudeck doctor` looks for there.

use super::core::Core;
use crate::base::HostName;
use crate::engine;
use crate::spec::RuntimeSpec;
use crate::wire::ProgramSought;

impl Core {
    /// The programs that services run as plain processes on a host, as far as their specs let them be there.
    pub(super) fn programs_on(&self, host: &HostName) -> Vec<ProgramSought> {
        let mut sought: Vec<ProgramSought> = Vec::new();
        let specs = self.files.services.values().filter_map(|spec| spec.as_ref().ok());
        for spec in specs.filter(|spec| spec.runtime == RuntimeSpec::Process) {
            let hosts = &spec.placement.hosts;
            let engine = engine::of(&spec.engine);
            let Some(program) =
                engine.program(spec).filter(|_| hosts.is_empty() || hosts.contains(host))
            else {
                continue;
            };
            let program = ProgramSought {
                program,
                path: spec.env.get("PATH").cloned(),
                // What a program of the user's does with it is not known.
                tells_version: engine.tells_version(),
            };
            if !sought.contains(&program) {
                sought.push(program);
            }
        }
        sought
    }
}
