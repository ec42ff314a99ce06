/* A fake of the part of NVIDIA's driver that `detect_gpu` asks: one GPU of compute capability 9.0, unless hidden. */
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return visible && !strcmp(visible, "-1") ? 100 : 0;
}
int cuDeviceGet(int *device, int number) { *device = 0; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Fake H100", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
