/* A libnvidia-ml.so.1 whose GPUs are lines of the text file $FAKE_NVML, read again at every call:
 *
 *   init=CODE       what nvmlInitWithFlags returns (9: the driver is not loaded)
 *   wedge=1         nvmlDeviceGetCount_v2 blocks until the file says otherwise
 *   gpu TEMPERATURE USED TOTAL ECC STATUS
 *                   one GPU; a negative value is NotSupported; STATUS is what every call on it returns
 *
 * Signatures and structures are those of nvml.h; the return codes are nvmlReturn_t. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, MAX = 16 };

struct gpu { long long temperature, used, total, ecc; int status; };
struct machine { int init, wedge, count; struct gpu gpus[MAX]; };

static struct machine load(void) {
    struct machine m = {0};
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
        struct gpu g;
        if (sscanf(line, "init=%d", &m.init) == 1 || sscanf(line, "wedge=%d", &m.wedge) == 1) continue;
        if (m.count < MAX && sscanf(line, "gpu %lld %lld %lld %lld %d", &g.temperature, &g.used, &g.total, &g.ecc,
                                    &g.status) == 5)
            m.gpus[m.count++] = g;
    }
    if (file) fclose(file);
    return m;
}

static int find(void *device, struct gpu *out) {
    struct machine m = load();
    long index = (long)device - 1;
    if (index < 0 || index >= m.count) return NOT_FOUND;
    *out = m.gpus[index];
    return out->status;
}

static int value(long long from, unsigned long long *to) {
    if (from < 0) return NOT_SUPPORTED;
    *to = (unsigned long long)from;
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return load().init; }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    case 18: return "RM has detected an NVML/RM version mismatch.";
    default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct machine m = load();
    while (m.wedge) { usleep(10000); m = load(); }
    *count = (unsigned)m.count;
    return m.init;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= (unsigned)load().count) return NOT_FOUND;
    *device = (void *)(long)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *out, unsigned size) {
    snprintf(out, size, "GPU-fake-%ld", (long)device - 1);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *out, unsigned size) {
    (void)device;
    snprintf(out, size, "Fake GPU");
    return SUCCESS;
}

struct temperature { unsigned version, sensor; int degrees; };

int nvmlDeviceGetTemperatureV(void *device, struct temperature *out) {
    struct gpu g;
    unsigned long long degrees = 0;
    int code = find(device, &g);
    if (code == SUCCESS) code = value(g.temperature, &degrees);
    out->degrees = (int)degrees;
    return code;
}

struct memory { unsigned version; unsigned long long total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *out) {
    struct gpu g;
    int code = find(device, &g);
    if (code == SUCCESS) code = value(g.used, &out->used);
    if (code == SUCCESS) code = value(g.total, &out->total);
    return code;
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *count) {
    struct gpu g;
    int code = find(device, &g);
    if (code != SUCCESS) return code;
    /* 1, 0: uncorrected, volatile; anything else would be another counter than the appliance asks for */
    if (type != 1 || counter != 0) return NOT_SUPPORTED;
    return value(g.ecc, count);
}
