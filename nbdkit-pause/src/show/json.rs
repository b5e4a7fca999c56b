//! What the servers tell, for a program: a line of JSON for each of them.

use serde_json::{Value, json};

use super::Server;
use super::ask::{Answer, Filter};
use super::table;

/// In the order of the servers.
pub fn lines(servers: &[Server]) -> String {
    servers.iter().map(|server| format!("{}\n", line(server))).collect()
}

fn line(server: &Server) -> String {
    let socket = Value::from(server.socket.display().to_string());
    match &server.outcome {
        // As it came: it may have members that this program does not know.
        Some(Ok(Answer::Told(line, _))) => format!("{{\"socket\":{socket},\"status\":{line}}}"),
        Some(Ok(Answer::Untold(filter))) => {
            let name = match filter {
                Filter::Ours => "libpause",
                Filter::Stock => "pause",
            };
            let error = table::how_to_see_more(*filter);
            json!({ "socket": socket, "filter": name, "error": error }).to_string()
        }
        Some(Err(trouble)) => json!({ "socket": socket, "error": trouble.to_string() }).to_string(),
        None => json!({ "socket": socket, "error": "not asked yet" }).to_string(),
    }
}
