//! What the lines of `claude -p --output-format stream-json` mean, and what is said to it.
//!
//! One process serves many turns. A result is not the answer to one message: messages that come while a tool works
//! are folded into the running turn, several that wait become one turn, and work in the background starts turns by
//! itself. So every push carries a uuid, and a result covers the pushes whose uuids it lists.
//!
//! The same push has the same uuid after a restart. A message that had begun is then taken for known: claude repeats
//! it, calls it completed and runs no turn. Then one more message under a fresh uuid asks for the reply.
//!
//! Invariant: no line makes it fail. Unknown types, keys of another type and broken JSON are signs of life.
//! Invariant: no error's words hold text of a message; what the process itself wrote to stderr is quoted only when
//! the process has ended.

use std::collections::BTreeMap;

use lamplighter::base::Ms;
use serde_json::{Value, json};
use uuid::Uuid;

use super::words::{compacted, exit_class, is_unknown_session};
use crate::provider::child::{Dialect, Effect, Exit, question_time, with_a_sign_of_life, words};
use crate::provider::{Answer, ErrorClass, ProviderEvent, Push, TurnError};

/// Most tools in flight that are kept track of. An agent runs a handful; more are merely not told of.
const MAX_TOOLS: usize = 256;
/// The tool whose declared time counts (contract 14).
const SHELL: &str = "Bash";
/// What says that the CLI names the state of each message. Without it a replayed message has begun.
const LIFECYCLE: &str = "msg_lifecycle_v1";

/// How far a push has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Written to the process.
    Said,
    /// In the conversation.
    Started,
    /// Called completed or cancelled, and yet no result has covered it.
    Passed,
}

#[derive(Clone, Debug)]
struct Pushed {
    id: String,
    /// What the agent knows the messages by.
    names: String,
    uuid: String,
    stage: Stage,
    /// The uuid under which its reply was asked for once more.
    again: Option<String>,
}

#[derive(Clone, Debug)]
struct Tool {
    /// The tool that started its agent, if one did.
    parent: Option<String>,
    /// The longest that it may take by its own declaration.
    time: Option<Ms>,
}

/// See the module.
#[derive(Debug)]
pub struct Wire {
    /// The conversation's id.
    session: Uuid,
    announced: Option<Uuid>,
    /// Makes the uuids of this process's own messages unlike any other's.
    nonce: Uuid,
    asked_again: u32,
    pushes: Vec<Pushed>,
    /// The tools in flight.
    tools: BTreeMap<String, Tool>,
    /// The tool servers that should be there.
    servers: Vec<String>,
    /// Whether any turn has begun.
    began: bool,
    /// Whether a turn runs.
    in_turn: bool,
    has_lifecycle: bool,
    /// The word for the last error that the CLI put into the conversation.
    failure: Option<String>,
    /// When a used-up window opens again, in seconds since the epoch.
    resets_at: Option<i64>,
    /// What the turn said last was said by the CLI and not by a model.
    synthetic: bool,
    compaction: Compaction,
    /// Seconds since the epoch.
    clock: fn() -> i64,
    over: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Compaction {
    #[default]
    None,
    Failed,
    Done {
        before: u64,
        after: u64,
    },
}

impl Wire {
    /// The conversation `session`; `nonce` is random, `servers` are the names of the configured tool servers.
    pub fn new(session: Uuid, nonce: Uuid, servers: Vec<String>, clock: fn() -> i64) -> Self {
        Self {
            session,
            announced: None,
            nonce,
            asked_again: 0,
            pushes: Vec::new(),
            tools: BTreeMap::new(),
            servers,
            began: false,
            in_turn: false,
            has_lifecycle: true,
            failure: None,
            resets_at: None,
            synthetic: false,
            compaction: Compaction::None,
            clock,
            over: false,
        }
    }

    fn on_line(&mut self, line: &Value) -> Vec<Effect> {
        let mut effects = self.announce(line);
        effects.extend(match text(line, "type") {
            Some("command_lifecycle") => self.lifecycle(line),
            Some("assistant") => self.assistant(line),
            Some("user") => self.user(line),
            Some("result") => self.result(line),
            Some("control_request") => refuse_request(line),
            Some("rate_limit_event") => {
                let info = &line["rate_limit_info"];
                if text(info, "status") == Some("rejected") {
                    self.resets_at = info["resetsAt"].as_i64();
                }
                Vec::new()
            }
            Some("system") => self.system(line),
            _ => Vec::new(),
        });
        effects
    }

    /// The conversation's id is told as soon as the CLI has used it, and whenever it changes.
    fn announce(&mut self, line: &Value) -> Vec<Effect> {
        // A conversation that is reset says so under its old id, and one that does not exist under the asked one.
        if matches!(text(line, "type"), Some("conversation_reset")) || line["is_error"] == true {
            return Vec::new();
        }
        let Some(session) = text(line, "session_id").and_then(|id| Uuid::try_parse(id).ok()) else {
            return Vec::new();
        };
        let is_own = session == self.session;
        let changes = matches!((text(line, "type"), text(line, "subtype")), (Some("system"), Some("init")))
            || text(line, "type") == Some("result");
        if self.announced == Some(session) || !(is_own || changes) {
            return Vec::new();
        }
        self.session = session;
        self.announced = Some(session);
        vec![Effect::Tell(ProviderEvent::Init { continuation: session.to_string() })]
    }

    fn lifecycle(&mut self, line: &Value) -> Vec<Effect> {
        let (uuid, state) = (text(line, "command_uuid").unwrap_or(""), text(line, "state").unwrap_or(""));
        let Some(push) = self.find(uuid) else { return Vec::new() };
        match state {
            "started" => self.started(uuid),
            "completed" | "cancelled" => {
                push.stage = Stage::Passed;
                // One that had started may be covered by the result still to come, or by nothing at all: then the
                // end of all work says so.
                if state == "completed" && self.pushes.iter().all(|push| push.stage != Stage::Started) {
                    return self.ask_again();
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn find(&mut self, uuid: &str) -> Option<&mut Pushed> {
        self.pushes.iter_mut().find(|push| push.uuid == uuid || push.again.as_deref() == Some(uuid))
    }

    fn started(&mut self, uuid: &str) -> Vec<Effect> {
        match self.find(uuid) {
            Some(push) if push.stage != Stage::Started => {
                push.stage = Stage::Started;
                vec![Effect::Tell(ProviderEvent::Started { id: push.id.clone() })]
            }
            _ => Vec::new(),
        }
    }

    /// Asks for the replies to messages that claude takes for known, once each, unless a turn that began by itself
    /// may yet bring them.
    fn ask_again(&mut self) -> Vec<Effect> {
        if self.in_turn {
            return Vec::new();
        }
        let mut effects = Vec::new();
        for push in &mut self.pushes {
            if push.stage != Stage::Passed || push.again.is_some() {
                continue;
            }
            self.asked_again += 1;
            let uuid = Uuid::new_v5(&self.nonce, format!("{} {}", self.asked_again, push.id).as_bytes());
            push.again = Some(uuid.to_string());
            push.stage = Stage::Said;
            effects.push(Effect::Write(user_line(&words::ask_again(&push.names), &uuid.to_string())));
        }
        effects
    }

    fn assistant(&mut self, line: &Value) -> Vec<Effect> {
        self.synthetic = text(&line["message"], "model") == Some("<synthetic>");
        if let Some(kind) = text(line, "error") {
            self.failure = Some(words::plain(kind));
        }
        let parent = text(line, "parent_tool_use_id").map(str::to_owned);
        let mut effects = Vec::new();
        for block in line["message"]["content"].as_array().into_iter().flatten() {
            if text(block, "type") != Some("tool_use") || self.tools.len() >= MAX_TOOLS {
                continue;
            }
            let (Some(id), Some(name)) = (text(block, "id"), text(block, "name")) else { continue };
            let timeout = block["input"]["timeout"].as_u64().filter(|_| name == SHELL).map(Ms);
            let time = timeout.or_else(|| question_time(name, &block["input"]));
            if self.tools.insert(id.to_owned(), Tool { parent: parent.clone(), time }).is_none() {
                let (id, name) = (id.to_owned(), name.to_owned());
                effects.push(Effect::Tell(ProviderEvent::ToolStarted { id, name, timeout }));
            }
        }
        effects
    }

    fn user(&mut self, line: &Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        if line["isReplay"] == true && self.began && !self.has_lifecycle {
            effects.extend(self.started(text(line, "uuid").unwrap_or("")));
        }
        for block in line["message"]["content"].as_array().into_iter().flatten() {
            if let Some(id) =
                text(block, "tool_use_id").filter(|_| text(block, "type") == Some("tool_result"))
            {
                effects.extend(self.end_tools(|tool, _| tool == id));
            }
        }
        effects
    }

    fn end_tools(&mut self, ends: impl Fn(&str, Option<&str>) -> bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.tools.retain(|id, tool| {
            let ended = ends(id, tool.parent.as_deref());
            if ended {
                effects.push(Effect::Tell(ProviderEvent::ToolEnded { id: id.clone() }));
            }
            !ended
        });
        effects
    }

    fn system(&mut self, line: &Value) -> Vec<Effect> {
        match text(line, "subtype") {
            Some("init") => {
                (self.began, self.in_turn, self.failure) = (true, true, None);
                self.synthetic = false;
                let capabilities = line["capabilities"].as_array();
                self.has_lifecycle = capabilities.is_some_and(|all| all.iter().any(|one| one == LIFECYCLE));
                self.missing_servers(line)
            }
            Some("api_retry") => {
                let wait = Ms(line["retry_delay_ms"].as_f64().map_or(0, whole));
                let said = words::service(status(line, "error_status"), text(line, "error"));
                let (attempt, most) = (&line["attempt"], &line["max_retries"]);
                let reason = match (attempt.as_u64(), most.as_u64()) {
                    (Some(attempt), Some(most)) => format!("{said}; try {attempt} of {most} failed"),
                    _ => said,
                };
                vec![Effect::Tell(ProviderEvent::Retrying { reason, wait })]
            }
            Some("status") => {
                if text(line, "compact_result") == Some("failed") {
                    self.compaction = Compaction::Failed;
                    let why = words::plain(text(line, "compact_error").unwrap_or(""));
                    return progress(&format!("the conversation could not be compacted ({why})"));
                }
                match text(line, "status") {
                    Some("compacting") => progress("compacting the conversation"),
                    _ => Vec::new(),
                }
            }
            Some("compact_boundary") => {
                let tokens = |key: &str| line["compact_metadata"][key].as_u64().unwrap_or(0);
                let (before, after) = (tokens("pre_tokens"), tokens("post_tokens"));
                self.compaction = Compaction::Done { before, after };
                progress(&compacted(before, after))
            }
            Some("task_notification") => match text(line, "tool_use_id") {
                Some(agent) => self.end_tools(|_, parent| parent == Some(agent)),
                None => Vec::new(),
            },
            Some("session_state_changed") if text(line, "state") == Some("idle") => {
                self.in_turn = false;
                self.ask_again()
            }
            _ => Vec::new(),
        }
    }

    fn missing_servers(&self, line: &Value) -> Vec<Effect> {
        let found = line["mcp_servers"].as_array();
        let state = |name: &str| {
            let server = found?.iter().find(|server| text(server, "name") == Some(name))?;
            text(server, "status")
        };
        let missing =
            self.servers.iter().filter(|name| !matches!(state(name), Some("connected" | "pending")));
        missing
            .flat_map(|name| {
                let state = state(name).map_or_else(|| "not there".to_owned(), words::plain);
                progress(&format!("the tool server {name:?} is {state}"))
            })
            .collect()
    }

    fn result(&mut self, line: &Value) -> Vec<Effect> {
        self.in_turn = false;
        // Agents in the background go on; what the turn itself had begun has ended with it.
        let mut effects = self.end_tools(|_, parent| parent.is_none());
        let compaction = std::mem::take(&mut self.compaction);
        let is_compaction = text(line, "local_command") == Some("compact");
        // An older CLI does not name the command.
        let is_synthetic = std::mem::take(&mut self.synthetic);
        let local_command = text(line, "local_command").is_some() || is_synthetic;
        if line["is_error"] == true || status(line, "api_error_status").is_some() {
            effects.extend(self.failed(line));
            return effects;
        }
        if is_compaction && compaction == Compaction::Failed {
            let said = words::service(None, self.failure.as_deref());
            let reason = format!("the conversation could not be compacted: {said}");
            effects.extend(self.end(TurnError::new(ErrorClass::Permanent, reason)));
            return effects;
        }
        let covers = self.covered(line);
        let mut text = text(line, "result").filter(|text| !text.is_empty()).map(str::to_owned);
        if let (Compaction::Done { before, after }, None, true) = (compaction, &text, is_compaction) {
            text = Some(compacted(before, after));
        }
        effects.push(Effect::Tell(ProviderEvent::Result(Answer { text, covers, local_command })));
        effects.extend(self.ask_again());
        effects
    }

    /// Takes out the pushes that a result is about.
    fn covered(&mut self, line: &Value) -> Vec<String> {
        let listed = line["user_message_uuids"].as_array();
        let is_covered = |push: &Pushed| match listed {
            Some(uuids) => uuids.iter().filter_map(Value::as_str).any(|uuid| push.is(uuid)),
            // An older CLI lists none; a turn that began by itself has none.
            None => is_asked_for(line) && push.stage != Stage::Said,
        };
        let (covered, left) = std::mem::take(&mut self.pushes).into_iter().partition(is_covered);
        self.pushes = left;
        let covered: Vec<Pushed> = covered;
        covered.into_iter().map(|push| push.id).collect()
    }

    fn failed(&mut self, line: &Value) -> Vec<Effect> {
        let said = line["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if !self.began && said.clone().any(is_unknown_session) {
            let reason = "claude knows nothing of this conversation any more";
            return self.end(TurnError::new(ErrorClass::SessionInvalid, reason));
        }
        if let Some(why) = text(line, "startup_failure_reason") {
            let reason = format!("claude refuses to start: {}", words::plain(why));
            return self.end(TurnError::new(ErrorClass::Permanent, reason));
        }
        let kind = text(line, "api_error_type").map(words::plain).or(self.failure.take());
        let status = status(line, "api_error_status");
        let is_service = text(line, "terminal_reason") == Some("api_error") || status.is_some();
        let (class, reason) = if is_service {
            (words::class(status, kind.as_deref()), words::service(status, kind.as_deref()))
        } else {
            let ended = words::plain(text(line, "subtype").unwrap_or("an error"));
            let class = match ended.as_str() {
                "error_max_turns" | "error_max_budget_usd" => ErrorClass::Permanent,
                _ => ErrorClass::Transient,
            };
            (class, format!("claude ended the turn with {ended}"))
        };
        if !is_asked_for(line) {
            return progress(&format!("a turn that the agent began by itself failed: {reason}"));
        }
        let resets_at = self.resets_at.take().filter(|_| class == ErrorClass::Transient);
        let left = resets_at.and_then(|at| u64::try_from(at.saturating_sub((self.clock)())).ok());
        self.end(TurnError { class, reason, retry_after: left.map(|left| Ms(left.saturating_mul(1_000))) })
    }

    fn end(&mut self, error: TurnError) -> Vec<Effect> {
        self.over = true;
        vec![Effect::Tell(ProviderEvent::Error(error))]
    }
}

impl Pushed {
    fn is(&self, uuid: &str) -> bool {
        self.uuid == uuid || self.again.as_deref() == Some(uuid)
    }
}

impl Dialect for Wire {
    fn open(&mut self) -> Vec<Effect> {
        Vec::new()
    }

    fn push(&mut self, push: Push) -> Vec<Effect> {
        let uuid = Uuid::new_v5(&self.session, push.id.as_bytes()).to_string();
        let line = user_line(&push.prompt.text, &uuid);
        let names = words::names(&push);
        self.pushes.push(Pushed { id: push.id, names, uuid, stage: Stage::Said, again: None });
        vec![Effect::Write(line)]
    }

    fn line(&mut self, line: &str) -> Vec<Effect> {
        if self.over {
            return Vec::new();
        }
        with_a_sign_of_life(serde_json::from_str(line).map(|line| self.on_line(&line)).unwrap_or_default())
    }

    fn exited(&mut self, exit: &Exit, unsaid: usize) -> Vec<Effect> {
        if self.over {
            return Vec::new();
        }
        let told = exit.told();
        if self.pushes.is_empty() && unsaid == 0 {
            self.over = true;
            return progress(&format!("claude ended while idle {told}"));
        }
        if !self.began && is_unknown_session(&exit.stderr) {
            let reason = "claude knows nothing of this conversation any more";
            return self.end(TurnError::new(ErrorClass::SessionInvalid, reason));
        }
        let class = exit_class(&exit.stderr);
        self.end(TurnError::new(class, format!("claude ended in mid-turn {told}")))
    }

    fn silent(&mut self, time: Ms) -> Vec<Effect> {
        let request = json!({"subtype": "interrupt", "cancel_queued": true});
        let mut effects = vec![control("watchdog", request)];
        let reason = format!("no sign of life from claude for {time}");
        effects.extend(self.end(TurnError::new(ErrorClass::Transient, reason)));
        effects
    }

    fn is_waiting(&self) -> bool {
        !self.over && !self.pushes.is_empty()
    }

    fn tools(&self) -> Vec<Option<Ms>> {
        self.tools.values().map(|tool| tool.time).collect()
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn status(value: &Value, key: &str) -> Option<u16> {
    value.get(key).and_then(Value::as_u64).and_then(|status| u16::try_from(status).ok())
}

/// Never negative, and no more than a machine's integer.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(number: f64) -> u64 {
    number.max(0.0) as u64
}

fn is_asked_for(result: &Value) -> bool {
    text(&result["origin"], "kind").is_none_or(|kind| kind == "human")
}

fn progress(said: &str) -> Vec<Effect> {
    vec![Effect::Tell(ProviderEvent::Progress(said.to_owned()))]
}

fn user_line(text: &str, uuid: &str) -> Value {
    json!({
        "type": "user",
        "message": {"role": "user", "content": text},
        "parent_tool_use_id": null,
        "uuid": uuid,
        "origin": {"kind": "human"},
    })
}

fn control(id: &str, request: Value) -> Effect {
    Effect::Write(json!({"type": "control_request", "request_id": id, "request": request}))
}

/// The line that ends an idle process, with whatever it has in the background.
pub fn farewell() -> Value {
    json!({"type": "control_request", "request_id": "end", "request": {"subtype": "end_session"}})
}

/// A question that nobody answers would hold the turn for ever. None is asked for with the flags we give.
fn refuse_request(line: &Value) -> Vec<Effect> {
    let Some(id) = line.get("request_id") else { return Vec::new() };
    let error = "this host answers no requests";
    let response = json!({"subtype": "error", "request_id": id, "error": error});
    vec![Effect::Write(json!({"type": "control_response", "response": response}))]
}

#[cfg(test)]
mod tests;
