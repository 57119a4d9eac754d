/* A simulated NVML that costs next to nothing: eight busy H100 whose values move a little, a process on each.
 * tests/bench/agent compiles it, so that what is measured is the agent. Signatures and numbers as in nvml.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int R;
typedef unsigned U;
typedef unsigned long long L;
typedef unsigned long D; /* a device: its index plus one */
enum { OK = 0, UNSUPPORTED = 3, SMALL = 7, TIMEOUT = 10 };
#define GPUS 8
#define GIB (1ull << 30)

struct pci { char legacy[16]; U domain, bus, device, id, subsystem; char bus_id[32]; };
struct memory { L total, free, used; };
struct memory2 { U version; L total, reserved, free, used; };
struct process { U pid; L bytes; U instance, part; };
struct share { U pid; L at; U sm, memory, encoder, decoder; };
struct field { U id, scope; long long at, took; U type; R result; L value; };
struct two { U gpu, memory; };

/* Moves with every reading of the first GPU's memory, which is made once a sample. */
static U now;
static U wave(D d, U span) { return (now * 7 + (U)d * 3) % span; }

R nvmlInit_v2(void) { return OK; }
R nvmlInitWithFlags(U f) { (void)f; return OK; }
R nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(R r) { (void)r; return "an error"; }
R nvmlSystemGetDriverVersion(char *to, U n) { snprintf(to, n, "550.90.07"); return OK; }
R nvmlSystemGetCudaDriverVersion_v2(int *to) { *to = 12040; return OK; }
R nvmlDeviceGetCount_v2(U *to) { *to = GPUS; return OK; }
R nvmlDeviceGetHandleByIndex_v2(U at, D *to) { *to = at + 1; return at < GPUS ? OK : 2; }
R nvmlDeviceGetIndex(D d, U *to) { *to = (U)d - 1; return OK; }
R nvmlDeviceGetName(D d, char *to, U n) { (void)d; snprintf(to, n, "NVIDIA H100 80GB HBM3"); return OK; }
R nvmlDeviceGetUUID(D d, char *to, U n) { snprintf(to, n, "GPU-00000000-0000-4000-8000-%012lu", d - 1); return OK; }
R nvmlDeviceGetPciInfo_v3(D d, struct pci *to) {
    memset(to, 0, sizeof *to);
    snprintf(to->bus_id, 32, "00000000:%02lX:00.0", 0x18 + d);
    return OK;
}
R nvmlDeviceGetMemoryInfo(D d, struct memory *to) {
    if (d == 1) now++;
    to->total = 80 * GIB;
    to->used = 40 * GIB + ((L)wave(d, 5) << 20);
    to->free = to->total - to->used;
    return OK;
}
R nvmlDeviceGetMemoryInfo_v2(D d, struct memory2 *to) {
    struct memory m;
    nvmlDeviceGetMemoryInfo(d, &m);
    to->total = m.total, to->free = m.free, to->used = m.used, to->reserved = 0;
    return OK;
}
R nvmlDeviceGetUtilizationRates(D d, struct two *to) { to->gpu = 60 + wave(d, 40), to->memory = 30 + wave(d, 20); return OK; }
R nvmlDeviceGetTemperature(D d, U s, U *to) { (void)s; *to = 55 + wave(d, 9); return OK; }
R nvmlDeviceGetTemperatureThreshold(D d, U t, U *to) { (void)d; *to = t ? 87 : 92; return OK; }
R nvmlDeviceGetPowerUsage(D d, U *to) { *to = 480000 + wave(d, 90) * 1000; return OK; }
R nvmlDeviceGetEnforcedPowerLimit(D d, U *to) { (void)d; *to = 700000; return OK; }
R nvmlDeviceGetFanSpeed_v2(D d, U f, U *to) { (void)d, (void)f, (void)to; return UNSUPPORTED; }
R nvmlDeviceGetClockInfo(D d, U c, U *to) { *to = c == 2 ? 2619 : 1900 + wave(d, 6) * 15; return OK; }
R nvmlDeviceGetMaxClockInfo(D d, U c, U *to) { (void)d; *to = c == 2 ? 2619 : 1980; return OK; }
R nvmlDeviceGetPerformanceState(D d, U *to) { (void)d; *to = 0; return OK; }
R nvmlDeviceGetCurrentClocksThrottleReasons(D d, L *to) { *to = wave(d, 8) ? 0 : 4; return OK; }
R nvmlDeviceGetTotalEccErrors(D d, U e, U c, L *to) { (void)d, (void)e; *to = c; return OK; }
R nvmlDeviceGetNumaNodeId(D d, U *to) { *to = (U)(d - 1) / 4; return OK; }
R nvmlDeviceGetNvLinkState(D d, U link, U *to) { (void)d, (void)link; *to = 1; return OK; }
R nvmlDeviceGetNvLinkRemotePciInfo_v2(D d, U link, struct pci *to) { return nvmlDeviceGetPciInfo_v3((d + link) % GPUS + 1, to); }
R nvmlDeviceGetComputeRunningProcesses_v3(D d, U *count, struct process *to) {
    U room = *count;
    *count = 1;
    if (!to || room < 1) return SMALL;
    *to = (struct process){(U)getppid(), 40 * GIB, ~0u, ~0u};
    (void)d;
    return OK;
}
R nvmlDeviceGetGraphicsRunningProcesses_v3(D d, U *count, struct process *to) { (void)d, (void)to; *count = 0; return OK; }
R nvmlDeviceGetProcessUtilization(D d, struct share *to, U *count, L seen) {
    U room = *count;
    (void)seen;
    *count = 1;
    if (!to || room < 1) return SMALL;
    *to = (struct share){(U)getppid(), now, 60 + wave(d, 40), 30, 0, 0};
    return OK;
}
R nvmlDeviceGetBAR1MemoryInfo(D d, struct memory *to) { (void)d; *to = (struct memory){128 * GIB, 127 * GIB, GIB}; return OK; }
R nvmlDeviceGetEncoderUtilization(D d, U *to, U *p) { (void)d; *to = 0, *p = 1; return OK; }
R nvmlDeviceGetDecoderUtilization(D d, U *to, U *p) { (void)d; *to = 0, *p = 1; return OK; }
R nvmlDeviceGetCurrPcieLinkGeneration(D d, U *to) { (void)d; *to = 5; return OK; }
R nvmlDeviceGetMaxPcieLinkGeneration(D d, U *to) { (void)d; *to = 5; return OK; }
R nvmlDeviceGetCurrPcieLinkWidth(D d, U *to) { (void)d; *to = 16; return OK; }
R nvmlDeviceGetMaxPcieLinkWidth(D d, U *to) { (void)d; *to = 16; return OK; }
/* The driver watches the counter for so long. */
R nvmlDeviceGetPcieThroughput(D d, U c, U *to) { usleep(20000); *to = 2000 + wave(d + c, 900); return OK; }
R nvmlDeviceGetEccMode(D d, U *c, U *p) { (void)d; *c = *p = 1; return OK; }
R nvmlDeviceGetComputeMode(D d, U *to) { (void)d; *to = 0; return OK; }
R nvmlDeviceGetPersistenceMode(D d, U *to) { (void)d; *to = 1; return OK; }
R nvmlDeviceGetMigMode(D d, U *c, U *p) { (void)d; *c = *p = 0; return OK; }
R nvmlDeviceGetTopologyCommonAncestor(D a, D b, U *to) { *to = (a - 1) / 4 == (b - 1) / 4 ? 40 : 50; return OK; }
R nvmlDeviceGetFieldValues(D d, int count, struct field *f) {
    (void)d;
    for (int at = 0; at < count; at++) {
        f[at].type = 3, f[at].value = f[at].id == 138 || f[at].id == 139 ? (L)now << 20 : 0;
        f[at].result = f[at].id < 100 ? UNSUPPORTED : OK;
    }
    return OK;
}
R nvmlDeviceGetSupportedEventTypes(D d, L *to) { (void)d; *to = 8; return OK; }
R nvmlDeviceRegisterEvents(D d, L t, unsigned long s) { (void)d, (void)t, (void)s; return OK; }
R nvmlEventSetCreate(unsigned long *to) { *to = 1; return OK; }
R nvmlEventSetFree(unsigned long s) { (void)s; return OK; }
R nvmlEventSetWait_v2(unsigned long s, void *to, U ms) { (void)s, (void)to; usleep(ms * 1000); return TIMEOUT; }
