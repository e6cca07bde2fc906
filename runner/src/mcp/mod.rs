//! The tool server: what an agent can do beside answering (`lamplighter-runner mcp`, Model Context Protocol over
//! standard input and output).
//!
//! It is a process of its own, started by the agent's program. What it shares with the runner are the two files: it
//! reads what is being answered in the fact `lamplighter.turn`, and writes rows, fenced by the attempt as the runner
//! is.
//!
//! Invariant: a tool either writes its row and says what it did, or changes nothing and says why and what to do.
//! Invariant: whichever way it is ended, nothing that it alone waits for stays on record.
//! Invariant: no state of a connection; everything a call needs is in the call and in the files.

mod arguments;
mod desk;
mod messages;
mod outbox;
mod question;
mod system;
mod tasks;
mod when;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rmcp::handler::server::tool::ToolCallContext;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt, tool, tool_handler, tool_router};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio_util::sync::CancellationToken;

use crate::launch::RunError;
use crate::log::Log;
use crate::options::Options;
use arguments::{
    AddMcpServer, AddReaction, AskUserQuestion, CreateAgent, EditMessage, InstallPackages, ListTasks,
    ScheduleTask, SendCard, SendFile, SendMessage, TaskId, UpdateTask,
};
use desk::Desk;

/// Why a tool did nothing, in words for the agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal(String);

impl<T: std::fmt::Display> From<T> for Refusal {
    fn from(reason: T) -> Self {
        Self(reason.to_string())
    }
}

/// What a tool says when it is done.
type Done = Result<String, Refusal>;

/// How long a call that is being worked on may delay the end.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Serves tools until the other side closes its end, or SIGTERM or SIGINT comes.
///
/// # Errors
/// When outbound.db cannot be used or the protocol's first exchange fails.
pub fn serve(options: Options, log: Log) -> Result<(), RunError> {
    let system = |doing| move |source: io::Error| RunError::System { doing, source };
    let ending = ending().map_err(system("receive signals"))?;
    let desk = Arc::new(Mutex::new(Desk::open(&options, log)?));
    let server = Server { desk: Arc::clone(&desk), log };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(system("start a runtime for tools"))?;
    let served = runtime.block_on(async {
        tokio::select! {
            served = speak(server) => served,
            () = ending.cancelled() => Ok(()),
        }
    });
    // A host or an agent that ends us need not wait for what a question still waits for.
    if let Err(Refusal(reason)) = desk.lock().unwrap_or_else(PoisonError::into_inner).close() {
        log.warn("cannot end what was waited for", &[("reason", &reason)]);
    }
    // The thread that reads standard input may be in the midst of a read that nobody ends.
    runtime.shutdown_timeout(END_WITHIN);
    served.map_err(system("speak with the agent"))
}

async fn speak(server: Server) -> io::Result<()> {
    let service = server.serve(rmcp::transport::stdio()).await;
    let ended = service.map_err(|error| io::Error::other(error.to_string()))?.waiting().await;
    ended.map(|_| ()).map_err(io::Error::other)
}

/// Cancelled by the first signal to end; by a second one the process ends at once.
fn ending() -> io::Result<CancellationToken> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let ending = CancellationToken::new();
    let token = ending.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if token.is_cancelled() {
                // It does not return for these two, whose default is the end.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            token.cancel();
        }
    })?;
    Ok(ending)
}

/// What every refusal begins with.
const REFUSED: &str = "Error: ";

fn refused(reason: &str) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(format!("{REFUSED}{reason}"))])
}

#[derive(Clone)]
struct Server {
    desk: Arc<Mutex<Desk>>,
    log: Log,
}

impl Server {
    /// Does the work of a tool beside the protocol: SQLite may wait for a lock.
    async fn with(
        &self,
        tool: &'static str,
        work: impl FnOnce(&mut Desk) -> Done + Send + 'static,
    ) -> Result<CallToolResult, ErrorData> {
        let desk = Arc::clone(&self.desk);
        let done = tokio::task::spawn_blocking(move || {
            // Each tool writes in one transaction: one that panicked left nothing half done.
            work(&mut desk.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let done = done.await.unwrap_or_else(|_| Err("the tool failed; its log line says where".into()));
        self.result(tool, done)
    }

    fn result(&self, tool: &'static str, done: Done) -> Result<CallToolResult, ErrorData> {
        self.log.info("tool called", &[("tool", &tool), ("refused", &done.is_err())]);
        Ok(match done {
            Ok(text) => CallToolResult::success(vec![ContentBlock::text(text)]),
            Err(Refusal(reason)) => refused(&reason),
        })
    }
}

#[tool_router]
impl Server {
    /// Send a message now, while you are still working. What you write in <message> blocks at the end of your turn is
    /// sent by itself; do not repeat it here.
    #[tool]
    async fn send_message(
        &self,
        Parameters(call): Parameters<SendMessage>,
    ) -> Result<CallToolResult, ErrorData> {
        self.with("send_message", move |desk| messages::send_message(desk, call)).await
    }

    /// Send a file from your folder, with an optional text.
    #[tool]
    async fn send_file(&self, Parameters(call): Parameters<SendFile>) -> Result<CallToolResult, ErrorData> {
        self.with("send_file", move |desk| messages::send_file(desk, call)).await
    }

    /// Change the text of a message that was sent before.
    #[tool]
    async fn edit_message(
        &self,
        Parameters(call): Parameters<EditMessage>,
    ) -> Result<CallToolResult, ErrorData> {
        self.with("edit_message", move |desk| messages::edit_message(desk, call)).await
    }

    /// Add an emoji to a message, one of yours or one that you were sent.
    #[tool]
    async fn add_reaction(
        &self,
        Parameters(call): Parameters<AddReaction>,
    ) -> Result<CallToolResult, ErrorData> {
        self.with("add_reaction", move |desk| messages::add_reaction(desk, call)).await
    }

    /// Send a card: a title, a description and links.
    #[tool]
    async fn send_card(&self, Parameters(call): Parameters<SendCard>) -> Result<CallToolResult, ErrorData> {
        self.with("send_card", move |desk| messages::send_card(desk, call)).await
    }

    /// Ask the user to choose one of several options, and wait for the answer.
    #[tool]
    async fn ask_user_question(
        &self,
        Parameters(call): Parameters<AskUserQuestion>,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResult, ErrorData> {
        let done = question::ask(Arc::clone(&self.desk), call, context.ct).await;
        self.result("ask_user_question", done)
    }

    /// Have a prompt given to you at a later time, once or again and again.
    #[tool]
    async fn schedule_task(
        &self,
        Parameters(call): Parameters<ScheduleTask>,
    ) -> Result<CallToolResult, ErrorData> {
        self.with("schedule_task", move |desk| tasks::schedule(desk, call)).await
    }

    /// List the tasks that are scheduled.
    #[tool]
    async fn list_tasks(&self, Parameters(call): Parameters<ListTasks>) -> Result<CallToolResult, ErrorData> {
        self.with("list_tasks", move |desk| tasks::list(desk, &call)).await
    }

    /// Change a scheduled task. Only what is given is changed; an empty text clears script or recurrence.
    #[tool]
    async fn update_task(
        &self,
        Parameters(call): Parameters<UpdateTask>,
    ) -> Result<CallToolResult, ErrorData> {
        self.with("update_task", move |desk| tasks::update(desk, call)).await
    }

    /// Cancel a scheduled task for good.
    #[tool]
    async fn cancel_task(&self, Parameters(call): Parameters<TaskId>) -> Result<CallToolResult, ErrorData> {
        self.with("cancel_task", move |desk| tasks::change(desk, &call, "cancel_task")).await
    }

    /// Pause a scheduled task until it is resumed.
    #[tool]
    async fn pause_task(&self, Parameters(call): Parameters<TaskId>) -> Result<CallToolResult, ErrorData> {
        self.with("pause_task", move |desk| tasks::change(desk, &call, "pause_task")).await
    }

    /// Resume a paused task.
    #[tool]
    async fn resume_task(&self, Parameters(call): Parameters<TaskId>) -> Result<CallToolResult, ErrorData> {
        self.with("resume_task", move |desk| tasks::change(desk, &call, "resume_task")).await
    }

    /// Ask for another agent of this name, that you can then write to.
    #[tool]
    async fn create_agent(
        &self,
        Parameters(call): Parameters<CreateAgent>,
    ) -> Result<CallToolResult, ErrorData> {
        self.with("create_agent", move |desk| system::create_agent(desk, call)).await
    }

    /// Ask for packages to be installed in your container. Somebody has to approve.
    #[tool]
    async fn install_packages(
        &self,
        Parameters(call): Parameters<InstallPackages>,
    ) -> Result<CallToolResult, ErrorData> {
        self.with("install_packages", move |desk| system::install_packages(desk, call)).await
    }

    /// Ask for another tool server to be added. Somebody has to approve.
    #[tool]
    async fn add_mcp_server(
        &self,
        Parameters(call): Parameters<AddMcpServer>,
    ) -> Result<CallToolResult, ErrorData> {
        self.with("add_mcp_server", move |desk| system::add_mcp_server(desk, call)).await
    }
}

#[tool_handler]
impl ServerHandler for Server {
    /// As the default, but that arguments of the wrong form are refused in the words of every refusal.
    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let done = Self::tool_router().call(ToolCallContext::new(self, request, context)).await?;
        let CallToolResponse::Complete(result) = done else { return Ok(done) };
        let reason = result.content.first().and_then(ContentBlock::as_text).map(|text| text.text.as_str());
        let reason = reason.filter(|reason| result.is_error == Some(true) && !reason.starts_with(REFUSED));
        Ok(match reason {
            Some(reason) => refused(reason).into(),
            None => result.into(),
        })
    }

    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("lamplighter", env!("CARGO_PKG_VERSION")))
            .with_instructions("Messages, questions, files and tasks of this conversation.")
    }
}
